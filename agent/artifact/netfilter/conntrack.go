package netfilter

import (
	"context"
	"errors"
	"net/netip"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// Tuple is one direction of a connection. The port of ICMP's source is its
// identifier.
type Tuple struct {
	Src, Dst netip.AddrPort
	Protocol uint8
	// Packets and Bytes are counted where net.netfilter.nf_conntrack_acct is set.
	Packets, Bytes uint64
}

// Connection is one that the kernel tracks.
type Connection struct {
	Family          uint8
	Original, Reply Tuple
	Status          uint32 // IPS_… of linux/netfilter/nf_conntrack_common.h
	TCPState        uint8  // of linux/netfilter/nf_conntrack_tcp.h; 0 where it is not TCP
	Timeout         uint32 // seconds until it is forgotten
	Mark, ID        uint32
	Zone            uint16
	Began           uint64 // nanoseconds since 1970, where net.netfilter.nf_conntrack_timestamp is set
}

// Attributes of a connection, CTA_….
const (
	ctOriginal = 1 + iota
	ctReply
	ctStatus
	ctProtocol
	_
	_
	ctTimeout
	ctMark
	ctCountOriginal
	ctCountReply
	_
	ctID

	ctZone = 18
	ctTime = 20
)

// Connections lists what the kernel tracks.
func Connections(ctx context.Context, c *netlink.Conn, do func(*Connection) error, odd func(error)) error {
	const get, is = 1, 0 // IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_NEW
	return dump(ctx, c, conntrack, get, is, 0, nil, ParseConnection, do, odd)
}

// ParseConnection reads the attributes of a connection.
func ParseConnection(family uint8, b []byte) (*Connection, error) {
	c := &Connection{Family: family}
	for kind, value := range netlink.Attributes(b) {
		n := netlink.BigUint(value)
		switch kind {
		case ctOriginal:
			c.Original.parse(value)
		case ctReply:
			c.Reply.parse(value)
		case ctStatus:
			c.Status = uint32(n)
		case ctProtocol:
			if state := find(find(value, 1), 1); len(state) == 1 { // CTA_PROTOINFO_TCP, its STATE
				c.TCPState = state[0]
			}
		case ctTimeout:
			c.Timeout = uint32(n)
		case ctMark:
			c.Mark = uint32(n)
		case ctCountOriginal:
			c.Original.count(value)
		case ctCountReply:
			c.Reply.count(value)
		case ctID:
			c.ID = uint32(n)
		case ctZone:
			c.Zone = uint16(n)
		case ctTime:
			c.Began = netlink.BigUint(find(value, 1)) // CTA_TIMESTAMP_START
		}
	}
	if !c.Original.Src.IsValid() {
		return nil, errors.New("cannot read a tracked connection: it has no addresses")
	}
	return c, nil
}

// parse reads a tuple: addresses, and a protocol with ports.
func (t *Tuple) parse(b []byte) {
	var src, dst netip.Addr
	for kind, value := range netlink.Attributes(find(b, 1)) { // CTA_TUPLE_IP
		switch a, _ := netip.AddrFromSlice(value); kind {
		case 1, 3: // CTA_IP_V4_SRC, V6_SRC
			src = a
		case 2, 4:
			dst = a
		}
	}
	var from, to uint16
	for kind, value := range netlink.Attributes(find(b, 2)) { // CTA_TUPLE_PROTO
		n := netlink.BigUint(value)
		switch kind {
		case 1: // CTA_PROTO_NUM
			t.Protocol = uint8(n)
		case 2, 4, 7: // CTA_PROTO_SRC_PORT, ICMP_ID, ICMPV6_ID
			from = uint16(n)
		case 3:
			to = uint16(n)
		}
	}
	t.Src, t.Dst = netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to)
}

func (t *Tuple) count(b []byte) {
	t.Packets, t.Bytes = netlink.BigUint(find(b, 1)), netlink.BigUint(find(b, 2))
}
