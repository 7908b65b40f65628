// Command weigh captures synthetic memory into nothing, and prints what that
// took: the peak of its own resident memory and of what the kernel kept locked
// for it, in bytes.
//
//	weigh RAM-BYTES STOP-AFTER-BYTES PROCESSORS
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/quicklime-ir/quicklime/agent/acquire"
	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/agent/memory/memorytest"
	"github.com/quicklime-ir/quicklime/agent/pack"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// nowhere takes parts until it has had enough.
type nowhere struct {
	most, had atomic.Uint64
	locked    atomic.Uint64
}

var errEnough = errors.New("enough")

func (n *nowhere) Open(context.Context, evidence.Item) (acquire.Slot, error) { return n, nil }
func (n *nowhere) Closed() bool                                              { return false }
func (n *nowhere) Has(int32) bool                                            { return false }
func (n *nowhere) Close(context.Context, int32, error) error                 { return nil }

func (n *nowhere) Put(_ context.Context, p pack.Part) error {
	if n.had.Add(p.RawSize) > n.most.Load() {
		return errEnough
	}
	if locked := status("VmLck"); locked > n.locked.Load() {
		n.locked.Store(locked)
	}
	return nil
}

func main() {
	ram, most, processors := number(os.Args[1]), number(os.Args[2]), number(os.Args[3])
	runtime.GOMAXPROCS(int(processors))
	a := &acquire.Acquirer{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		OpenMemory: func(context.Context, memory.Options) (memory.Source, []memory.Refusal, error) {
			return memorytest.Synthetic(ram), nil, nil
		}}
	n := new(nowhere)
	n.most.Store(most)
	r := a.Run(context.Background(), acquire.Order{Kind: evidence.Memory, Compression: evidence.Auto}, n, func(acquire.Progress) {})
	if r.Err != nil && !errors.Is(r.Err, errEnough) {
		fmt.Fprintln(os.Stderr, r.Err)
		os.Exit(1)
	}
	fmt.Println(status("VmHWM"), n.locked.Load())
}

func number(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return n
}

// status gives a number of kB of /proc/self/status, in bytes.
func status(name string) uint64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			return number(strings.TrimSuffix(strings.TrimSpace(rest), " kB")) << 10
		}
	}
	return 0
}
