package desk

import (
	"slices"
	"testing"

	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

func TestWhichAgentsAreWanted(t *testing.T) {
	agent := func(instance, node, version, kernel string, able bool) *wire.AttachedAgent {
		return &wire.AttachedAgent{Id: "spiffe://q/ec2/1/r/" + instance, Node: node, Present: node != "",
			Hello: &wire.Hello{AgentVersion: version, KernelRelease: kernel, MemorySources: []*wire.SourceVerdict{{Source: "kcore", Usable: able}}}}
	}
	agents := []*wire.AttachedAgent{agent("i-1", "a", "1.0", "6.1.0-18", true), agent("i-2", "b", "1.1", "6.12.0", false), agent("i-3", "", "1.0", "5.10.0", true)}
	for name, tt := range map[string]struct {
		choice AgentChoice
		want   []int
	}{
		"all":                 {AgentChoice{}, []int{1, 2, 3}},
		"attached":            {AgentChoice{Attached: true}, []int{1, 2}},
		"gone":                {AgentChoice{Gone: true}, []int{3}},
		"unable":              {AgentChoice{Unable: true}, []int{2}},
		"on a node":           {AgentChoice{Node: "a"}, []int{1}},
		"of a version":        {AgentChoice{Version: "1.0"}, []int{1, 3}},
		"with a kernel":       {AgentChoice{Kernel: "6.1."}, []int{1}},
		"of an instance":      {AgentChoice{Instance: "i-2"}, []int{2}},
		"all of these":        {AgentChoice{Attached: true, Version: "1.0"}, []int{1}},
		"what contradicts":    {AgentChoice{Attached: true, Gone: true}, nil},
		"half an instance id": {AgentChoice{Instance: "-2"}, nil},
	} {
		var want []*wire.AttachedAgent
		for _, n := range tt.want {
			want = append(want, agents[n-1])
		}
		if got := tt.choice.Of(agents); !slices.Equal(got, want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}
