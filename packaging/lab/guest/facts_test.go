package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

// wiredVM is a VM whose guest is the returned end of a pipe.
func wiredVM(t *testing.T) (*VM, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	vm := &VM{line: ours, tail: &tail{forward: io.Discard}, done: make(chan struct{}), ready: make(chan struct{}), calls: map[int]*call{}}
	go func() {
		vm.listen()
		close(vm.done)
	}()
	t.Cleanup(func() {
		ours.Close()
		<-vm.done
	})
	return vm, theirs
}

func standing() *pact.Standing {
	return &pact.Standing{Release: "6.1", Version: "Linux version 6.1", BootID: "b", IOMem: sampleIOMem, IntruderPID: 9,
		IntruderExe: pact.IntruderExe + " (deleted)", Listen: "0.0.0.0:31337", BeaconFrom: "10.0.2.15:4000"}
}

func TestReady(t *testing.T) {
	vm, guest := wiredVM(t)
	// Noise and damage come first, and a second report changes nothing.
	second := standing()
	second.IntruderPID = 10
	go func() {
		_, _ = io.WriteString(guest, "garbage\n{\"kind\":\"dance\"}\n")
		_ = pact.Write(guest, pact.Report{Kind: pact.KindReply, ID: 99})
		_ = pact.Write(guest, pact.Report{Kind: pact.KindFacts, Facts: standing()})
		_ = pact.Write(guest, pact.Report{Kind: pact.KindFacts, Facts: second})
	}()
	facts, err := vm.Ready(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if facts.DeletedPID != 9 || len(facts.SystemRAM) != 3 || facts.BootTime == 0 {
		t.Errorf("got %+v", facts)
	}
}

func TestReadyFails(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(guest net.Conn)
		want string
	}{
		"fault":    {func(g net.Conn) { _ = pact.Write(g, pact.Report{Kind: pact.KindFault, Text: "no eth0"}) }, "no eth0"},
		"hang up":  {func(g net.Conn) { g.Close() }, "it ended"},
		"too long": {func(g net.Conn) { _, _ = g.Write(bytes.Repeat([]byte("x"), 100<<10)); g.Close() }, "it ended"},
		"no RAM": {func(g net.Conn) {
			s := standing()
			s.IOMem = "none"
			_ = pact.Write(g, pact.Report{Kind: pact.KindFacts, Facts: s})
		}, "System RAM"},
		"program not deleted": {func(g net.Conn) {
			s := standing()
			s.IntruderExe = pact.IntruderExe
			_ = pact.Write(g, pact.Report{Kind: pact.KindFacts, Facts: s})
		}, "deleted"},
		"no connection": {func(g net.Conn) {
			s := standing()
			s.BeaconFrom = ""
			_ = pact.Write(g, pact.Report{Kind: pact.KindFacts, Facts: s})
		}, "outbound connection"},
	} {
		t.Run(name, func(t *testing.T) {
			vm, guest := wiredVM(t)
			go c.do(guest)
			if _, err := vm.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		vm, _ := wiredVM(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := vm.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestCommand(t *testing.T) {
	vm, guest := wiredVM(t)
	go func() {
		lines := pact.Lines(guest)
		for lines.Scan() {
			var c pact.Command
			if pact.Decode(lines.Bytes(), &c) != nil {
				return
			}
			r := pact.Report{Kind: pact.KindReply, ID: c.ID, Text: "did " + c.Verb}
			switch c.Verb {
			case "refuse":
				r.Error = "never"
			case "hang up":
				guest.Close()
				return
			}
			// An answer to nobody comes before each real one.
			_ = pact.Write(guest, pact.Report{Kind: pact.KindReply, ID: c.ID + 100, Text: "lost"})
			_ = pact.Write(guest, r)
		}
	}()
	if got, err := vm.Command(t.Context(), "dance"); err != nil || got != "did dance" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := vm.Command(t.Context(), "refuse"); err == nil || !strings.Contains(err.Error(), "never") {
		t.Errorf("got %v", err)
	}
	if _, err := vm.Command(t.Context(), "hang up"); !errors.Is(err, ErrDown) {
		t.Errorf("got %v, want ErrDown", err)
	}
	if len(vm.calls) != 0 {
		t.Errorf("%d answers are still awaited", len(vm.calls))
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var all bytes.Buffer
	tl := &tail{forward: &all}
	for range 3000 {
		_, _ = tl.Write([]byte("0123456789"))
	}
	_, _ = tl.Write([]byte("end"))
	if got := tl.String(); len(got) != tailSize || !strings.HasSuffix(got, "789end") {
		t.Errorf("kept %d bytes ending in %q", len(got), got[len(got)-6:])
	}
	if all.Len() != 30003 {
		t.Errorf("forwarded %d bytes, want 30003", all.Len())
	}
}

func TestBeaconHoldsAFew(t *testing.T) {
	b, err := listenBeacon()
	must(t, err)
	for n := range maxCalls + 1 {
		conn, err := net.Dial("tcp4", b.listener.Addr().String())
		must(t, err)
		defer conn.Close()
		must(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		_, err = conn.Read(make([]byte, 1))
		var waiting net.Error
		if held := errors.As(err, &waiting) && waiting.Timeout(); held != (n < maxCalls) {
			t.Errorf("connection %d: held is %v (%v)", n, held, err)
		}
	}
	b.close()
}
