// Package overlay serves containerd's own overlayfs snapshotter, which containerd has within it, as a proxy plugin: at the unix
// socket SOCKET, its folder ROOT, removing as containerd's does by default.
package overlay

import (
	"log"
	"net"
	"os"
	"testing"

	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"google.golang.org/grpc"
)

// There are no tests; the laboratory builds test programs.
func TestMain(_ *testing.M) {
	snapshotter, err := overlay.NewSnapshotter(os.Getenv("ROOT"), overlay.AsynchronousRemove)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", os.Getenv("SOCKET"))
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	snapshots.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	log.Fatal(server.Serve(listener))
}
