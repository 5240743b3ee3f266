// Package conformance is containerd's own snapshotter suite against `modelvold serve`, over its socket: a new daemon with a
// new store for every case, on whichever file system TMPDIR lies. `make conformance` builds and runs it.
package conformance

import (
	"context"
	"errors"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Of snapshotters with this name the suite does not ask that a directory of a lower layer be renamed in one step: the kernel's
// overlay, which our layers are mounted with as well, answers that with EXDEV, and programs copy. Everything else is asked of all.
const kind = "overlayfs"

func TestSnapshotter(t *testing.T) {
	testsuite.SnapshotterSuite(t, kind, serve)
}

// serve is a testsuite.SnapshotterFunc. What it returns last fails when the daemon did not end well, or left something mounted.
func serve(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	running, err := start(root)
	if err != nil {
		return nil, nil, err
	}
	connection, err := grpc.NewClient("unix://"+running.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, errors.Join(err, running.stop())
	}
	end := func() error {
		return errors.Join(connection.Close(), running.stop())
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "modelvold"), end, nil
}
