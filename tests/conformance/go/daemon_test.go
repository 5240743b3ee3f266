package conformance

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
)

const (
	// The program that runs `-m modelvold`; it finds the package by PYTHONPATH.
	python = "MODELVOLD_PYTHON"
	// For a start, and for an end.
	patience = 30 * time.Second

	settings = `
[store]
root = "%[1]s/store"
reserve = ""
[registry]
hosts_dir = "%[1]s/certs.d"
docker_config = "%[1]s/docker.json"
[facade]
listen = ""
[metrics]
listen = ""
`
)

// A daemon lives below root, and writes its log where the cases write theirs.
type daemon struct {
	root, run, socket string
	command           *exec.Cmd
	ended             chan error
}

// start returns when the socket answers.
func start(root string) (*daemon, error) {
	program := os.Getenv(python)
	if program == "" {
		return nil, fmt.Errorf("%s is not set: it names the Python that runs modelvold", python)
	}
	file := filepath.Join(root, "config.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, settings, root), 0o600); err != nil {
		return nil, err
	}
	run := filepath.Join(root, "run")
	d := &daemon{
		root:    root,
		run:     run,
		socket:  filepath.Join(run, "modelvold.sock"),
		command: exec.Command(program, "-m", "modelvold", "serve", "--config", file, "--run", run),
		ended:   make(chan error, 1),
	}
	d.command.Stdout, d.command.Stderr = os.Stdout, os.Stdout
	if err := d.command.Start(); err != nil {
		return nil, err
	}
	go func() { d.ended <- d.command.Wait() }()
	if err := d.await(); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

func (d *daemon) await() error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if connection, err := net.Dial("unix", d.socket); err == nil {
			return connection.Close()
		}
		select {
		case err := <-d.ended:
			d.ended <- err
			return fmt.Errorf("the daemon ended before it answered: %v", err)
		default:
		}
	}
	return fmt.Errorf("the daemon does not answer after %v", patience)
}

// stop ends the daemon by SIGTERM. It is an error if that takes long or is not answered with exit status 0, or if anything is still
// mounted in the case's folder, by whomever, but for the private mount of the store: that one outlives a daemon, for the
// volumes opened through it. Nothing is mounted there afterwards.
func (d *daemon) stop() error {
	_ = d.command.Process.Signal(syscall.SIGTERM) // it may have ended: then its status says so
	var ended error
	select {
	case ended = <-d.ended:
	case <-time.After(patience):
		ended = fmt.Errorf("not ended %v after SIGTERM", patience)
		_ = d.command.Process.Kill()
		<-d.ended
	}
	if ended != nil {
		ended = fmt.Errorf("the daemon: %w", ended)
	}
	left, err := unmountBelow(filepath.Dir(d.root))
	left = slices.DeleteFunc(left, func(point string) bool { return point == filepath.Join(d.run, "store") })
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left mounted: %q", left))
	}
	return errors.Join(ended, err)
}

// unmountBelow detaches every mount below folder, the youngest first, and says which there were.
func unmountBelow(folder string) ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(folder))
	if err != nil {
		return nil, err
	}
	var points []string
	for _, mount := range slices.Backward(mounts) {
		points = append(points, mount.Mountpoint)
		err = errors.Join(err, os.NewSyscallError("umount2", syscall.Unmount(mount.Mountpoint, syscall.MNT_DETACH)))
	}
	return points, err
}
