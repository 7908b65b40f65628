package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/chaos"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// diskSize is that of a collector's disk: its store has the room of two log
// files from the start, of 64 MB each.
const diskSize = "size=160m"

// disk is a file system of its own for the collector's data.
type disk struct {
	t   *testing.T
	dir string
}

func newDisk(t *testing.T, dir string) disk {
	t.Helper()
	needsWires(t) // what makes namespaces makes mounts
	d := disk{t, dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, diskSize); err != nil {
		t.Fatalf("cannot mount a disk: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return d
}

// fill takes all the room that there is, until it is given back.
func (d disk) fill() (giveBack func()) {
	d.t.Helper()
	path := filepath.Join(d.dir, "=fill")
	f, err := os.Create(path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		n, err := f.Write(make([]byte, size))
		switch {
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		case err != nil:
			d.t.Fatal(err)
		case n == 0:
			d.t.Fatal("nothing was written")
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			d.t.Error(err)
		}
	}
}

// remount makes the disk read-only, or writable again.
func (d disk) remount(flags uintptr) {
	d.t.Helper()
	if err := syscall.Mount("", d.dir, "", syscall.MS_REMOUNT|flags, diskSize); err != nil {
		d.t.Fatal(err)
	}
}

// supervise starts the collector again a second after it has ended, as the
// unit has systemd do, until the test is over.
func supervise(t *testing.T, w *world.World) {
	over := make(chan struct{})
	var keeper sync.WaitGroup
	keeper.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-w.Node(0).Ended():
			}
			select {
			case <-over:
				return
			case <-time.After(time.Second):
			}
			if err := w.Node(0).Launch(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	t.Cleanup(func() { close(over); keeper.Wait() })
}

// awaitLog waits until the collector has said something n times.
func awaitLog(t *testing.T, w *world.World, what string, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if bytes.Count(w.Logs(), []byte(what)) >= n {
			return
		}
	}
	t.Fatalf("the collector did not say %q %d times", what, n)
}

// TestTheDiskFails under a collector that is at work: its store can write no
// more. It says why and what to do, and as soon as that is done the case goes on
// by itself, with nothing lost and nothing done twice.
func TestTheDiskFails(t *testing.T) {
	t.Parallel()
	for name, story := range map[string]struct {
		says string
		fail func(d disk, w *world.World) (mend func())
	}{
		"it is full": {"is full: make room on it", func(d disk, _ *world.World) func() { return d.fill() }},
		"it is read-only": {"make its disk writable", func(d disk, w *world.World) func() {
			if err := w.KillCollector(); err != nil { // no disk becomes read-only while somebody writes to it
				d.t.Fatal(err)
			}
			d.remount(syscall.MS_RDONLY)
			return func() { d.remount(0) }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			d, p := newDisk(t, filepath.Join(dir, "data")), newProbe(t)
			w := start(t, func(c *world.Config) {
				c.Dir, c.Collector = dir, []string{"--health-listen", p.addr, "--health-every", "1s"}
			})
			if w.Data() != d.dir {
				t.Fatalf("the collector's data is in %s, not in %s", w.Data(), d.dir)
			}
			attach(t, w, world.Victim)
			p.await("/readyz", 200)
			mend := story.fail(d, w)
			supervise(t, w)
			sent := chaos.Sent{Event: "6f1c1e0a-5a0c-4b35-9d0e-0f6f7c1d2a01", Instances: []string{world.Victim}, At: time.Now()}
			if err := w.AWS.SendRaw(world.Compromised(world.Victim).Event(sent.Event)); err != nil {
				t.Fatal(err)
			}
			awaitLog(t, w, story.says, 3) // as it is started again and again
			if status, body := p.get("/readyz"); status == 200 {
				t.Errorf("it says that it is ready: %s", body)
			}
			if !strings.Contains(string(w.Logs()), d.dir) {
				t.Error("it does not say which disk")
			}
			mend()
			awaitFor(t, w, 3*time.Minute, "its end", ended)
			e, err := chaos.Look(t.Context(), w, []chaos.Sent{sent}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if v := chaos.Judge(e); !v.OK() || v.Cases != 1 {
				t.Errorf("%+v", v)
			}
			p.await("/readyz", 200)
		})
	}
}
