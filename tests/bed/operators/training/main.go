// The training operator of the test bed: Kubeflow's own controllers for the kinds of job that are named on the command
// line. What its own program has besides is left out: a webhook that checks jobs, its certificates, gang scheduling.
package main

import (
	"flag"
	"fmt"
	"os"

	jobs "github.com/kubeflow/training-operator/pkg/apis/kubeflow.org/v1"
	"github.com/kubeflow/training-operator/pkg/config"
	controllers "github.com/kubeflow/training-operator/pkg/controller.v1"
	"github.com/kubeflow/training-operator/pkg/controller.v1/common"
	"k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metrics "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

// How many jobs of a kind are looked after at a time.
const threads = 2

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var kinds controllers.EnabledSchemes
	flag.Var(&kinds, "kind", "a kind of job to run; may be repeated")
	health := flag.String("health", "", "address to be asked at whether it is ready")
	flag.StringVar(&config.Config.MPIKubectlDeliveryImage, "mpi-image", config.MPIKubectlDeliveryImageDefault,
		"image of the container that gives an MPI launcher its kubectl")
	flag.Parse()
	ctrl.SetLogger(zap.New())

	if err := jobs.AddToScheme(scheme.Scheme); err != nil {
		return err
	}
	configuration, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	manager, err := ctrl.NewManager(configuration, ctrl.Options{
		Scheme:                 scheme.Scheme,
		Metrics:                metrics.Options{BindAddress: "0"},
		HealthProbeBindAddress: *health,
	})
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		add := controllers.SupportedSchemeReconciler[kind]
		if err := add(manager, common.GenNonGangSchedulerSetupFunc(), threads); err != nil {
			return fmt.Errorf("no controller for %s: %w", kind, err)
		}
	}
	if err := manager.AddReadyzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	return manager.Start(ctrl.SetupSignalHandler())
}
