// csi-sanity against the node plugin, through what stands between it and us: csi-sanity cannot say what kubelet says
// of an inline volume. The shim answers as a controller service, so that there are volumes with a pod's context, shows
// them to the node plugin where and as kubelet would, and passes on all else.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/uuid"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	volumeName = "hadoop-token"
	audience   = "hadoop-token.csi"
	kubelet    = "csi.storage.k8s.io/"
)

// Where csi-sanity wants volumes: in a folder that it makes and removes. They are elsewhere.
const wanted = "/target"

type failure struct{ failed bool }

func (f *failure) Fail() { f.failed = true }

func main() {
	driver := flag.String("driver", "", "the node plugin's CSI socket")
	pods := flag.String("pods", "", "kubelet's folder of pods")
	flag.Parse()
	folder, err := os.MkdirTemp("", "sanity")
	if err != nil {
		log.Fatal(err)
	}
	shim, err := serve(*driver, *pods, filepath.Join(folder, "shim.sock"))
	if err != nil {
		log.Fatal(err)
	}
	config := sanity.NewTestConfig()
	config.Address = "unix://" + filepath.Join(folder, "shim.sock")
	config.TargetPath = filepath.Join(folder, "mount")
	config.StagingPath = filepath.Join(folder, "staging")
	config.CheckPath = shim.check
	var ended failure
	sanity.Test(&ended, config)
	if err := os.RemoveAll(folder); err != nil {
		log.Fatal(err)
	}
	if ended.failed {
		os.Exit(1)
	}
}

type shim struct {
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	csi.UnimplementedIdentityServer
	identity csi.IdentityClient
	node     csi.NodeClient
	pods     string

	lock sync.Mutex
	// The UID of the pod that each volume is for.
	uids map[string]string
	// The volume that was published last where csi-sanity wanted it.
	published map[string]string
}

func serve(driver, pods, socket string) (*shim, error) {
	connection, err := grpc.NewClient("unix://"+driver,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	shim := &shim{
		identity:  csi.NewIdentityClient(connection),
		node:      csi.NewNodeClient(connection),
		pods:      pods,
		uids:      map[string]string{},
		published: map[string]string{},
	}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, shim)
	csi.RegisterControllerServer(server, shim)
	csi.RegisterNodeServer(server, shim)
	go func() { log.Fatal(server.Serve(listener)) }()
	return shim, nil
}

// target is where kubelet would have a volume.
func (s *shim) target(id string) (string, bool) {
	s.lock.Lock()
	defer s.lock.Unlock()
	uid, known := s.uids[id]
	return filepath.Join(s.pods, uid, "volumes/kubernetes.io~csi", volumeName, "mount"), known
}

// path of a volume in place of the one that csi-sanity gives; any other path is left as it is.
func (s *shim) path(id, path string) string {
	if target, known := s.target(id); known && strings.HasSuffix(path, wanted) {
		return target
	}
	return path
}

// check says for csi-sanity what is where a volume was published.
func (s *shim) check(path string) (sanity.PathKind, error) {
	s.lock.Lock()
	id := s.published[path]
	s.lock.Unlock()
	target, known := s.target(id)
	if !known {
		return "", fmt.Errorf("nothing was ever published at %s", path)
	}
	info, err := os.Lstat(target)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return sanity.PathIsNotFound, nil
	case err != nil:
		return "", err
	case info.IsDir():
		return sanity.PathIsDir, nil
	default:
		return sanity.PathIsOther, nil
	}
}

func (s *shim) GetPluginInfo(ctx context.Context, request *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return s.identity.GetPluginInfo(ctx, request)
}

func (s *shim) Probe(ctx context.Context, request *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return s.identity.Probe(ctx, request)
}

func (s *shim) GetPluginCapabilities(ctx context.Context, request *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	answer, err := s.identity.GetPluginCapabilities(ctx, request)
	if err == nil {
		service := &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}
		answer.Capabilities = append(answer.Capabilities,
			&csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: service}})
	}
	return answer, err
}

func (s *shim) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	rpc := &csi.ControllerServiceCapability_RPC{Type: csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME}
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: []*csi.ControllerServiceCapability{
		{Type: &csi.ControllerServiceCapability_Rpc{Rpc: rpc}},
	}}, nil
}

// CreateVolume makes up a pod with a volume: the same for the same name.
func (s *shim) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	uid := uuid.NewSHA1(uuid.NameSpaceOID, []byte(request.GetName())).String()
	id := fmt.Sprintf("csi-%x", sha256.Sum256([]byte(uid+volumeName)))
	s.lock.Lock()
	s.uids[id] = uid
	s.lock.Unlock()
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: id,
		VolumeContext: map[string]string{
			kubelet + "ephemeral":           "true",
			kubelet + "pod.name":            "sanity",
			kubelet + "pod.namespace":       "default",
			kubelet + "pod.uid":             uid,
			kubelet + "serviceAccount.name": "default",
		},
	}}, nil
}

func (s *shim) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, nil
}

func (s *shim) NodePublishVolume(ctx context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if target, known := s.target(request.GetVolumeId()); known && strings.HasSuffix(request.GetTargetPath(), wanted) {
		if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
			return nil, err
		}
		s.lock.Lock()
		s.published[request.GetTargetPath()] = request.GetVolumeId()
		s.lock.Unlock()
		request.TargetPath = target
		request.Readonly = true
		tokens, err := json.Marshal(map[string]map[string]string{
			audience: {"token": "of the pod", "expirationTimestamp": "2100-01-01T00:00:00Z"},
		})
		if err != nil {
			return nil, err
		}
		request.Secrets = map[string]string{kubelet + "serviceAccount.tokens": string(tokens)}
	}
	return s.node.NodePublishVolume(ctx, request)
}

func (s *shim) NodeUnpublishVolume(ctx context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	request.TargetPath = s.path(request.GetVolumeId(), request.GetTargetPath())
	return s.node.NodeUnpublishVolume(ctx, request)
}

func (s *shim) NodeGetVolumeStats(ctx context.Context, request *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	request.VolumePath = s.path(request.GetVolumeId(), request.GetVolumePath())
	return s.node.NodeGetVolumeStats(ctx, request)
}

func (s *shim) NodeGetVolumeHealth(ctx context.Context, request *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	return s.node.NodeGetVolumeHealth(ctx, request)
}

func (s *shim) NodeGetCapabilities(ctx context.Context, request *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return s.node.NodeGetCapabilities(ctx, request)
}

func (s *shim) NodeGetInfo(ctx context.Context, request *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return s.node.NodeGetInfo(ctx, request)
}
