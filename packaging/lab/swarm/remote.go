package swarm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/process"
)

// HerdVerb is the hidden command of the lab that is a herd.
const HerdVerb = "herd"

// remote is a herd in a process of its own, with the least claim to the
// processors: what agents on hosts of their own would compute there must not
// take the time of the collector, nor of the agents that get orders.
type remote struct {
	child *process.Child
	calls *rpc.Client
}

// startRemote starts one from the lab's program. Its files are in dir.
func startRemote(ctx context.Context, lab, dir string, spec Spec, logs io.Writer) (_ *remote, err error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	file, socket := filepath.Join(dir, "herd.json"), filepath.Join(dir, "herd.sock")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	r := &remote{}
	if r.child, err = process.Start(process.Spec{Path: "nice", Args: []string{"-n", "19", lab, HerdVerb, file, socket}, Log: logs, Name: "herd"}); err != nil {
		return nil, err
	}
	err = r.child.Await(ctx, func() bool {
		r.calls, err = rpc.Dial("unix", socket)
		return err == nil
	})
	if err != nil {
		return nil, errors.Join(err, r.child.Kill())
	}
	return r, nil
}

func (r *remote) status() (s Status, err error) {
	return s, r.calls.Call("Herd.Status", struct{}{}, &s)
}

func (r *remote) cut() (took time.Duration, err error) {
	return took, r.calls.Call("Herd.Cut", struct{}{}, &took)
}

func (r *remote) close() error {
	return errors.Join(r.calls.Close(), r.child.Stop(10*time.Second))
}

// calls are what a herd answers.
type calls struct{ herd *herd }

// Status answers how the herd is.
func (c calls) Status(_ struct{}, out *Status) error {
	*out = c.herd.status()
	return nil
}

// Cut cuts the herd off.
func (c calls) Cut(_ struct{}, out *time.Duration) error {
	*out = c.herd.cut()
	return nil
}

// ServeHerd is a herd of agents as a file says, and answers on a socket, until
// ctx ends.
func ServeHerd(ctx context.Context, file, socket string) error {
	debug.SetGCPercent(400) // what the agents cost is not measured
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var spec Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return fmt.Errorf("cannot read %s: %w", file, err)
	}
	herd, err := newHerd(spec)
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	if err := server.RegisterName("Herd", calls{herd}); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	stop := herd.start(ctx)
	if conn, err := l.Accept(); err == nil {
		defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
		server.ServeConn(conn) // until whoever started this hangs up
	}
	return stop()
}
