package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/iomem"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// greeter says hello for the agent. What does not change is read once.
type greeter struct {
	hello   *wire.Hello
	ctx     context.Context
	options memory.Options
}

func newGreeter(ctx context.Context, version string, options memory.Options) (*greeter, error) {
	self, err := evidence.ThisProgram("quicklime-agent", version)
	if err != nil {
		return nil, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("cannot learn own host name: %w", err)
	}
	h := &wire.Hello{AgentVersion: version, BinarySha256: self.SHA256[:], Hostname: hostname,
		KernelRelease: firstLine("/proc/sys/kernel/osrelease"), KernelVersion: firstLine("/proc/version"),
		BootId: firstLine("/proc/sys/kernel/random/boot_id")}
	if f, err := os.Open("/proc/iomem"); err == nil {
		defer f.Close()
		ranges, err := iomem.SystemRAM(f)
		if err == nil {
			for _, r := range ranges {
				h.RamBytes += r.Len()
			}
		}
	}
	return &greeter{hello: h, ctx: ctx, options: options}, nil
}

// greet gives the hello of a new stream: the clock, and which memory sources
// would work now.
func (g *greeter) greet() *wire.Hello {
	g.hello.MemorySources = nil
	for _, v := range memory.Probe(g.ctx, g.options) {
		g.hello.MemorySources = append(g.hello.MemorySources, &wire.SourceVerdict{
			Source: v.Source, Usable: v.Usable, Reason: string(v.Reason), Detail: v.Detail})
	}
	g.hello.WallClock = timestamppb.Now()
	return g.hello
}

// firstLine reads a short file of /proc; one that cannot be read is empty.
func firstLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.ToValidUTF8(line, "\uFFFD")
}
