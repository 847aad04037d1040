// Command pull asks a node's container runtime for images, over the same interface as the kubelet: so what it brings
// is what a pod will find. Usage: pull SOCKET IMAGE...
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cri "k8s.io/cri-client/pkg"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: pull SOCKET IMAGE...")
		os.Exit(2)
	}
	service, err := cri.NewRemoteImageService("unix://"+os.Args[1], 20*time.Minute, noop.NewTracerProvider(), nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, image := range os.Args[2:] {
		if _, err := service.PullImage(context.Background(), &runtimeapi.ImageSpec{Image: image}, nil, nil); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", image, err)
			os.Exit(1)
		}
		fmt.Println(image)
	}
}
