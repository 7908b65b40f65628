package artifact

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/netfilter"
	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// Connection is a row of the table conntrack: a connection that the packet
// filter tracks, also one that only passes through the host, as those of
// containers do, or whose socket is closed already.
type Connection struct {
	NetNS      uint64    `json:"netns"`
	IPProtocol uint8     `json:"ip_protocol"`     // 1 ICMP, 6 TCP, 17 UDP …
	State      string    `json:"state,omitempty"` // of TCP
	Status     []string  `json:"status,omitempty"`
	TimeoutS   uint32    `json:"timeout_s"` // until it is forgotten
	Original   Direction `json:"original"`
	// Reply is how answers come; another than Original turned round means that
	// an address is translated.
	Reply Direction  `json:"reply"`
	Mark  uint32     `json:"mark,omitempty"`
	Zone  uint16     `json:"zone,omitempty"`
	ID    uint32     `json:"id,omitempty"`
	Began *time.Time `json:"began,omitempty"` // only where nf_conntrack_timestamp is set
}

// Direction is one way of a tracked connection.
type Direction struct {
	SrcIP   string `json:"src_ip"`
	SrcPort uint16 `json:"src_port,omitempty"` // of ICMP the identifier
	DstIP   string `json:"dst_ip"`
	DstPort uint16 `json:"dst_port,omitempty"`
	Packets uint64 `json:"packets,omitempty"` // only where nf_conntrack_acct is set, as the bytes
	Bytes   uint64 `json:"bytes,omitempty"`
}

// fillConntrack writes the table conntrack. To open netfilter's netlink would
// load its modules; where they are not, /proc/net/nf_conntrack is read, if there
// is one.
func fillConntrack(h *Host, s *sheet) error {
	ask := question(askConntrack)
	if !h.running() || !h.askable("nfnetlink") || !h.askable("nf_conntrack_netlink") {
		ask = nil
	}
	return h.eachNetSpace(s, unix.NETLINK_NETFILTER, "conntrack", ask, func(ns namespace) error {
		return throughProc(h, s, ns, "nf_conntrack", parseConntrack, func(c *Connection, ns namespace) { c.NetNS = ns.id })
	})
}

func askConntrack(a *answer, c *netlink.Conn, ns namespace) error {
	return netfilter.Connections(a.s.ctx, c, func(n *netfilter.Connection) error {
		row := &Connection{NetNS: ns.id, IPProtocol: n.Original.Protocol, Status: statusWords(n.Status), TimeoutS: n.Timeout,
			Original: direction(&n.Original), Reply: direction(&n.Reply), Mark: n.Mark, Zone: n.Zone, ID: n.ID}
		if n.Original.Protocol == unix.IPPROTO_TCP {
			row.State = at(trackedStates, n.TCPState)
		}
		if n.Began > 0 && n.Began < 1<<63 {
			began := time.Unix(0, int64(n.Began)).UTC()
			row.Began = &began
		}
		return a.put(row)
	}, a.odd)
}

// trackedStates name the states of linux/netfilter/nf_conntrack_tcp.h, by the
// words of /proc/net/nf_conntrack.
var trackedStates = []string{"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"}

// statusWords name the bits IPS_… of linux/netfilter/nf_conntrack_common.h.
func statusWords(status uint32) (words []string) {
	names := []string{"expected", "seen_reply", "assured", "confirmed", "src_nat", "dst_nat", "seq_adjust", "src_nat_done", "dst_nat_done", "dying",
		"fixed_timeout", "template", "untracked", "helper", "offload", "hw_offload"}
	for i, name := range names {
		if status&(1<<i) != 0 {
			words = append(words, name)
		}
	}
	return words
}

func direction(t *netfilter.Tuple) Direction {
	return Direction{addrText(t.Src.Addr()), t.Src.Port(), addrText(t.Dst.Addr()), t.Dst.Port(), t.Packets, t.Bytes}
}

// parseConntrack reads a line of nf_conntrack: family and its number, protocol
// and its number, seconds left, TCP's state, then KEY=VALUE of either direction
// and [FLAGS]. Source: linux/net/netfilter/nf_conntrack_standalone.c,
// ct_seq_show.
func parseConntrack(line []byte) *Connection {
	f := strings.Fields(string(line))
	if len(f) < 6 {
		return nil
	}
	protocol, err := strconv.ParseUint(f[3], 10, 8)
	if err != nil {
		return nil
	}
	row := &Connection{IPProtocol: uint8(protocol)}
	if seconds, err := strconv.ParseUint(f[4], 10, 32); err == nil { // an offloaded one has none
		row.TimeoutS = uint32(seconds)
	}
	to := &row.Original
	for _, word := range f[4:] {
		key, value, found := strings.Cut(word, "=")
		switch {
		case found:
			if key == "src" && row.Original.SrcIP != "" {
				to = &row.Reply
			}
			if !row.set(to, key, value) {
				return nil
			}
		case strings.HasPrefix(word, "["):
			row.Status = append(row.Status, strings.ToLower(string(clip(strings.Trim(word, "[]"), 16))))
		case row.State == "" && strings.Trim(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") == "" && strings.Trim(word, "0123456789") != "":
			row.State = string(clip(word, 16))
		}
	}
	if row.Original.SrcIP == "" || row.Reply.SrcIP == "" {
		return nil
	}
	return row
}

// set takes one KEY=VALUE, and tells whether it has the expected form. Keys that
// the table has no field for are passed over.
func (c *Connection) set(to *Direction, key, value string) bool {
	number := func(bits int) uint64 {
		n, err := strconv.ParseUint(value, 10, bits)
		if err != nil {
			return 0
		}
		return n
	}
	switch key {
	case "src", "dst":
		addr, err := netip.ParseAddr(value)
		if err != nil || addr.Zone() != "" {
			return false
		}
		if key == "src" {
			to.SrcIP = addr.String()
		} else {
			to.DstIP = addr.String()
		}
	case "sport", "id":
		to.SrcPort = uint16(number(16))
	case "dport":
		to.DstPort = uint16(number(16))
	case "packets":
		to.Packets = number(64)
	case "bytes":
		to.Bytes = number(64)
	case "mark":
		c.Mark = uint32(number(32))
	case "zone":
		c.Zone = uint16(number(16))
	}
	return true
}
