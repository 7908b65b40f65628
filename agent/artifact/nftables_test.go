package artifact

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// filterVariable makes the child set a packet filter, which also makes the
// kernel track connections.
const filterVariable = "ARTIFACT_TEST_FILTER"

// join puts attributes, by pairs of kind and value, one behind the other. A
// value is bytes, text that a NUL ends, or a number in network order.
func join(pairs ...any) (b []byte) {
	for i := 0; i < len(pairs); i += 2 {
		var value []byte
		switch v := pairs[i+1].(type) {
		case []byte:
			value = v
		case string:
			value = append([]byte(v), 0)
		case int:
			value = binary.BigEndian.AppendUint32(nil, uint32(v))
		}
		b = netlink.Append(b, uint16(pairs[i].(int)), value)
	}
	return b
}

// plantFilter makes a table with a chain that counts tracked TCP packets to
// 10.0.0.1 and drops them, and a set with one element.
func plantFilter() error {
	const nested = unix.NLA_F_NESTED
	expression := func(name string, attributes []byte) []byte {
		return join(1|nested, join(1, name, 2|nested, attributes))
	}
	value := func(b ...byte) []byte { return join(1, b) }
	var rule []byte
	for _, e := range [][]byte{
		expression("ct", join(1, 1, 2, 0)),
		expression("payload", join(1, 1, 2, 1, 3, 16, 4, 4)),
		expression("cmp", join(1, 1, 2, 0, 3|nested, value(10, 0, 0, 1))),
		expression("counter", nil),
		expression("immediate", join(1, 0, 2|nested, join(2|nested, join(1, 0)))),
	} {
		rule = append(rule, e...)
	}
	var batch []byte
	add := func(kind uint16, family byte, flags uint16, attributes []byte) {
		batch = append(batch, netlink.Header(kind, unix.NLM_F_REQUEST|flags, uint32(len(batch)), append([]byte{family, 0, 0, unix.NFNL_SUBSYS_NFTABLES}, attributes...))...)
	}
	const create, inet = unix.NLM_F_CREATE | unix.NLM_F_APPEND, 1
	tables := func(kind uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | kind }
	add(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, nil)
	add(tables(unix.NFT_MSG_NEWTABLE), inet, create, join(1, "planted"))
	add(tables(unix.NFT_MSG_NEWCHAIN), inet, create, join(1, "planted", 3, "in", 4|nested, join(1, 1, 2, -5), 5, 1, 7, "filter"))
	add(tables(unix.NFT_MSG_NEWSET), inet, create, join(1, "planted", 2, "bad", 3, 0, 4, 7, 5, 4, 10, 1))
	add(tables(unix.NFT_MSG_NEWSETELEM), inet, create, join(1, "planted", 2, "bad", 3|nested, join(1|nested, join(1|nested, value(192, 0, 2, 9)))))
	add(tables(unix.NFT_MSG_NEWRULE), inet, create, join(1, "planted", 2, "in", 4|nested, rule, 7, append([]byte{0, 4}, "why\x00"...)))
	add(unix.NFNL_MSG_BATCH_END, 0, unix.NLM_F_ACK, nil)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	if _, _, err := unix.Recvfrom(fd, answer, unix.MSG_DONTWAIT); err != nil {
		return nil // no complaint
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code < 0 {
		return unix.Errno(-code)
	}
	return nil
}

// The rules of another namespace, read without nft(8).
func TestNFTablesOfAnotherNamespace(t *testing.T) {
	needRoot(t)
	if !new(Host).askable("nf_tables") {
		t.Skip("this kernel has no nf_tables loaded")
	}
	_, netns := elsewhere(t, filterVariable+"=1")
	all, record := table[PacketRule](t, new(Host), "nftables")
	var got []PacketRule
	for _, row := range all {
		if row.NetNS == netns {
			row.NetNS, row.Handle, row.Flags = 0, 0, 0
			got = append(got, row)
		}
	}
	priority := int32(-5)
	want := []PacketRule{
		{Item: "table", Family: "inet", Table: "planted"},
		{Item: "chain", Family: "inet", Table: "planted", Name: "in", Type: "filter", Hook: "input", Priority: &priority, Policy: "accept"},
		{Item: "set", Family: "inet", Table: "planted", Name: "bad", KeyType: 7},
		{Item: "rule", Family: "inet", Table: "planted", Chain: "in", Comment: "why", Expressions: []Text{
			"ct dreg=1 key=state", "payload dreg=1 base=network offset=16 len=4", "cmp sreg=1 op=eq data=0a000001", "counter bytes=0 packets=0", "immediate dreg=0 data=drop"}},
		{Item: "element", Family: "inet", Table: "planted", Name: "bad", Key: "c0000209"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s\non record: %+v", diff, record)
	}
}

// A connection of another namespace that its packet filter tracks, by ctnetlink
// and by the kernel's file.
func TestConntrackOfAnotherNamespace(t *testing.T) {
	needRoot(t)
	h := new(Host)
	if !h.askable("nf_tables") || !h.askable("nf_conntrack_netlink") {
		t.Skip("this kernel has no nf_tables or conntrack loaded")
	}
	pid, netns := elsewhere(t, filterVariable+"=1", talkVariable+"=1")
	wanted := func(c Connection) bool {
		return c.IPProtocol == unix.IPPROTO_TCP && c.State == "ESTABLISHED" && c.Original.DstIP == "127.0.0.1" && c.Original.DstPort == 4444 &&
			c.Reply.SrcPort == 4444 && c.Reply.DstPort == c.Original.SrcPort && slices.Contains(c.Status, "assured")
	}
	all, record := table[Connection](t, h, "conntrack")
	if !slices.ContainsFunc(all, func(c Connection) bool { return c.NetNS == netns && wanted(c) }) {
		t.Errorf("the connection is not among %+v\non record: %+v", all, record)
	}
	f, _, err := h.openThrough(namespace{id: netns, pids: []int{pid}}, "net/nf_conntrack")
	if gone(err) {
		t.Skip("this kernel has no nf_conntrack file")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(bytes.Split(lines, []byte("\n")), func(line []byte) bool {
		c := parseConntrack(line)
		return c != nil && wanted(*c)
	}) {
		t.Errorf("the connection is not among\n%s", lines)
	}
}

func TestParseConntrack(t *testing.T) {
	got := parseConntrack([]byte("ipv4     2 udp      17 29 src=10.0.0.2 dst=10.0.0.1 sport=50000 dport=53 packets=1 bytes=70 [UNREPLIED] src=10.0.0.1 dst=10.0.0.2 sport=53 dport=50000 mark=7 zone=2 use=2"))
	want := &Connection{IPProtocol: 17, TimeoutS: 29, Status: []string{"unreplied"}, Mark: 7, Zone: 2,
		Original: Direction{"10.0.0.2", 50000, "10.0.0.1", 53, 1, 70}, Reply: Direction{"10.0.0.1", 53, "10.0.0.2", 50000, 0, 0}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, line := range []string{"", "ipv4 2 tcp 6 100 ESTABLISHED", "ipv4 2 tcp 6 100 src=x dst=y src=z dst=w", "a b c d e f g"} {
		if got := parseConntrack([]byte(line)); got != nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func FuzzParseConntrack(f *testing.F) {
	f.Add([]byte("ipv6     10 tcp      6 431999 ESTABLISHED src=::1 dst=::1 sport=1 dport=2 src=::1 dst=::1 sport=2 dport=1 [ASSURED] mark=0 use=1"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if row := parseConntrack(line); row != nil && (row.Original.SrcIP == "" || row.Reply.SrcIP == "") {
			t.Errorf("%q: %+v", line, row)
		}
	})
}
