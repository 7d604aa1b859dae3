// The peer of the webhook in the benchmarks: as small as an admission webhook in Go can be that writes down who asked for
// a pod. It reads the review with Kubernetes' own types, and adds one annotation. It signs nothing, reads no owner, and
// believes every controller.
package main

import (
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
	"time"

	admission "k8s.io/api/admission/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

const (
	annotation = "peer.bed.test/submitter"
	// The same as a part of a JSON pointer.
	escaped = "peer.bed.test~1submitter"
	limit   = 8 << 20
)

type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

type webhook struct{ decoder runtime.Decoder }

func main() {
	listen := flag.String("listen", "", "address to listen at")
	certificate := flag.String("certificate", "", "file with the certificate to show")
	key := flag.String("key", "", "file with its key")
	flag.Parse()

	scheme := runtime.NewScheme()
	if err := admission.AddToScheme(scheme); err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /mutate", webhook{serializer.NewCodecFactory(scheme).UniversalDeserializer()})
	server := &http.Server{
		Addr:              *listen,
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      15 * time.Second,
	}
	log.Fatal(server.ListenAndServeTLS(*certificate, *key))
}

func (w webhook) ServeHTTP(answer http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(answer, request.Body, limit))
	if err != nil {
		http.Error(answer, err.Error(), http.StatusBadRequest)
		return
	}
	var review admission.AdmissionReview
	if _, _, err := w.decoder.Decode(body, nil, &review); err != nil || review.Request == nil {
		http.Error(answer, "not a review", http.StatusBadRequest)
		return
	}
	patch, err := decorate(review.Request)
	if err != nil {
		http.Error(answer, err.Error(), http.StatusBadRequest)
		return
	}
	kind := admission.PatchTypeJSONPatch
	decided := admission.AdmissionReview{
		TypeMeta: review.TypeMeta,
		Response: &admission.AdmissionResponse{
			UID: review.Request.UID, Allowed: true, Patch: patch, PatchType: &kind,
		},
	}
	answer.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(answer).Encode(decided); err != nil {
		log.Print(err)
	}
}

func decorate(request *admission.AdmissionRequest) ([]byte, error) {
	var pod core.Pod
	if err := json.Unmarshal(request.Object.Raw, &pod); err != nil {
		return nil, err
	}
	submitter := request.UserInfo.Username
	if pod.Annotations == nil {
		all := map[string]string{annotation: submitter}
		return json.Marshal([]operation{{Op: "add", Path: "/metadata/annotations", Value: all}})
	}
	return json.Marshal([]operation{{Op: "add", Path: "/metadata/annotations/" + escaped, Value: submitter}})
}
