package desk

import (
	"strings"

	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// AgentChoice says which agents are wanted; the zero choice wants all.
type AgentChoice struct {
	Attached bool   // those that are attached now
	Gone     bool   // those that are not
	Unable   bool   // those on hosts whose memory could not be captured
	Node     string // attached to this node
	Version  string // of the agent
	Kernel   string // what the kernel's release begins with
	Instance string // what the agent's name ends with
}

// Of gives the agents that are wanted.
func (c AgentChoice) Of(agents []*wire.AttachedAgent) []*wire.AttachedAgent {
	var out []*wire.AttachedAgent
	for _, a := range agents {
		if c.wants(a) {
			out = append(out, a)
		}
	}
	return out
}

func (c AgentChoice) wants(a *wire.AttachedAgent) bool {
	h := a.GetHello()
	return (!c.Attached || a.GetPresent()) &&
		(!c.Gone || !a.GetPresent()) &&
		(!c.Unable || !wire.Capturable(h)) &&
		(c.Node == "" || a.GetPresent() && a.GetNode() == c.Node) &&
		(c.Version == "" || h.GetAgentVersion() == c.Version) &&
		strings.HasPrefix(h.GetKernelRelease(), c.Kernel) &&
		(c.Instance == "" || strings.HasSuffix(a.GetId(), "/"+c.Instance))
}
