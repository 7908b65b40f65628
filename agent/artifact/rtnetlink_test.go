package artifact

import (
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/rtnetlink"
)

// A namespace that no process is in any more, as only a descriptor keeps it: the
// walk that finds the owners of sockets finds it.
func TestInterfacesOfANamespaceThatADescriptorKeeps(t *testing.T) {
	needRoot(t)
	var kept *os.File
	var netns uint64
	t.Run("a child that ends", func(t *testing.T) {
		cmd := exec.Command("/proc/self/exe")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		pid := plant(t, cmd, talkVariable+"=1")
		var err error
		if kept, err = os.Open("/proc/" + itoa(pid) + "/ns/net"); err != nil {
			t.Fatal(err)
		}
		netns = fileInode(kept)
	})
	defer kept.Close()
	h := new(Host)
	table[Socket](t, h, "sockets")
	all, _ := table[Interface](t, h, "interfaces")
	for _, row := range all {
		if row.NetNS == netns && row.Name == "lo" {
			if !slices.Contains(row.Addresses, "127.0.0.1/8") || !slices.Contains(row.Flags, "up") || row.Index != 1 || row.RxBytes == 0 {
				t.Errorf("wrong: %+v", row)
			}
			return
		}
	}
	t.Errorf("nothing of namespace %d among %d interfaces", netns, len(all))
}

// The same routes by rtnetlink and by /proc/net, whose fields must agree.
func TestRoutesOfThisHost(t *testing.T) {
	all, _ := table[Route](t, new(Host), "routes")
	own, err := new(Host).namespaceOf("self", "net")
	if err != nil {
		t.Fatal(err)
	}
	local := 0
	for _, row := range all {
		if row.Table == 255 && row.NetNS == own {
			local++
		}
	}
	if local == 0 {
		t.Errorf("no route of the local table among %d", len(all))
	}
	s := newSheet(t.Context(), "test", io.Discard, new(Record))
	err = s.lines("/proc/self/net/route", func(line []byte) error {
		want := parseRoute(line)
		if want != nil && !slices.ContainsFunc(all, func(r Route) bool {
			return r.NetNS == own && r.Interface == want.Interface && r.Destination == want.Destination && r.Gateway == want.Gateway && r.Metric == want.Metric &&
				r.Flags == want.Flags
		}) {
			t.Errorf("/proc/net/route alone has %+v", want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRoutingRulesOfThisHost(t *testing.T) {
	all, _ := table[RoutingRule](t, new(Host), "routing_rules")
	want := RoutingRule{Family: "inet", Priority: 32766, Action: "table", Table: 254, Protocol: "kernel"}
	for _, row := range all {
		row.NetNS = 0
		if row == want {
			return
		}
	}
	t.Errorf("the rule for the main table, %+v, is not among %+v", want, all)
}

func TestNeighbourWords(t *testing.T) {
	for _, c := range []struct {
		state       uint16
		flags       uint8
		words, proc string
	}{
		{unix.NUD_REACHABLE, 0, "reachable", "0x2"},
		{unix.NUD_PERMANENT, 0, "permanent", "0x6"},
		{unix.NUD_FAILED, 0, "failed", "0x0"},
		{unix.NUD_STALE, unix.NTF_PROXY, "stale", "0xa"},
	} {
		if got := arpFlags(&rtnetlink.Neighbour{State: c.state, Flags: c.flags}); got != c.proc || neighbourState(c.state) != c.words {
			t.Errorf("%#x: %s %s, want %s %s", c.state, got, neighbourState(c.state), c.proc, c.words)
		}
	}
}
