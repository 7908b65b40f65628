// Package rtnetlink lists the interfaces, addresses, routes, routing rules and
// neighbours of a network namespace as the kernel tells them.
//
// Sources: rtnetlink(7), linux/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,
// fib_rules}.h.
package rtnetlink

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// maxList bounds the elements of a list in one message: alternative names of an
// interface, next hops of a route.
const maxList = 256

// dump asks for a list whose request begins with a header of size bytes, and
// parses what comes. A message that cannot be read goes to odd.
func dump[R any](ctx context.Context, c *netlink.Conn, ask, answer uint16, size int, parse func([]byte) (*R, error), do func(*R) error, odd func(error)) error {
	return c.Dump(ctx, ask, make([]byte, size), func(m netlink.Message) error {
		if m.Type != answer {
			return nil
		}
		row, err := parse(m.Data)
		if err != nil {
			odd(err)
			return nil
		}
		return do(row)
	})
}

func tooShort(what string, b []byte, size int) error {
	if len(b) < size {
		return fmt.Errorf("cannot read %s: %d bytes, want %d", what, len(b), size)
	}
	return nil
}

func word(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

// small reads a number of at most 4 bytes.
func small(b []byte) uint32 { return uint32(netlink.Uint(b)) }

// addr reads an address of either length; any other gives the zero Addr.
func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Link is an interface.
type Link struct {
	Index                 int
	Flags                 uint32 // IFF_… of linux/if.h
	Name, Kind, Alias     string // Kind is veth, bridge …; "" of a physical one
	AltNames              []string
	MAC, PermMAC          net.HardwareAddr
	MTU, Master, Parent   int    // Parent is the index of what it is made of or ends in, in ParentNS
	ParentNS              *int32 // the ID that this namespace gives that of Parent
	OperState             uint8
	Promiscuity, AllMulti uint32 // how many ask for all packets, or all multicast ones
	XDP                   uint32 // ID of the eBPF program that sees packets first
	RxPackets, TxPackets  uint64
	RxBytes, TxBytes      uint64
	RxErrors, TxErrors    uint64
	RxDropped, TxDropped  uint64
}

// Links lists the interfaces.
func Links(ctx context.Context, c *netlink.Conn, do func(*Link) error, odd func(error)) error {
	return dump(ctx, c, unix.RTM_GETLINK, unix.RTM_NEWLINK, unix.SizeofIfInfomsg, ParseLink, do, odd)
}

// ParseLink reads a struct ifinfomsg and what follows.
func ParseLink(b []byte) (*Link, error) {
	if err := tooShort("interface", b, unix.SizeofIfInfomsg); err != nil {
		return nil, err
	}
	l := &Link{Index: int(int32(word(b[4:]))), Flags: word(b[8:])}
	for kind, value := range netlink.Attributes(b[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = netlink.String(value)
		case unix.IFLA_IFALIAS:
			l.Alias = netlink.String(value)
		case unix.IFLA_ADDRESS:
			l.MAC = hardware(value)
		case unix.IFLA_PERM_ADDRESS:
			l.PermMAC = hardware(value)
		case unix.IFLA_MTU:
			l.MTU = int(small(value))
		case unix.IFLA_MASTER:
			l.Master = int(small(value))
		case unix.IFLA_LINK:
			l.Parent = int(small(value))
		case unix.IFLA_LINK_NETNSID:
			id := int32(small(value))
			l.ParentNS = &id
		case unix.IFLA_OPERSTATE:
			l.OperState = uint8(small(value))
		case unix.IFLA_PROMISCUITY:
			l.Promiscuity = small(value)
		case unix.IFLA_ALLMULTI:
			l.AllMulti = small(value)
		default:
			l.nested(kind, value)
		}
	}
	return l, nil
}

// nested reads the attributes that hold others, and the counters.
func (l *Link) nested(kind uint16, value []byte) {
	switch kind {
	case unix.IFLA_LINKINFO:
		for kind, value := range netlink.Attributes(value) {
			if kind == unix.IFLA_INFO_KIND {
				l.Kind = netlink.String(value)
			}
		}
	case unix.IFLA_XDP:
		for kind, value := range netlink.Attributes(value) {
			if kind == unix.IFLA_XDP_PROG_ID {
				l.XDP = small(value)
			}
		}
	case unix.IFLA_PROP_LIST:
		for kind, value := range netlink.Attributes(value) {
			if kind == unix.IFLA_ALT_IFNAME && len(l.AltNames) < maxList {
				l.AltNames = append(l.AltNames, netlink.String(value))
			}
		}
	case unix.IFLA_STATS64:
		for i, field := range []*uint64{&l.RxPackets, &l.TxPackets, &l.RxBytes, &l.TxBytes, &l.RxErrors, &l.TxErrors, &l.RxDropped, &l.TxDropped} {
			if len(value) >= 8*(i+1) {
				*field = binary.NativeEndian.Uint64(value[8*i:])
			}
		}
	}
}

// hardware gives an address that is one: the loopback's is all zeros.
func hardware(b []byte) net.HardwareAddr {
	for _, octet := range b {
		if octet != 0 {
			return append(net.HardwareAddr(nil), b[:min(len(b), 32)]...) // MAX_ADDR_LEN
		}
	}
	return nil
}

// Address is an address of an interface.
type Address struct {
	Index  int
	Prefix netip.Prefix
}

// Addresses lists the addresses of all interfaces.
func Addresses(ctx context.Context, c *netlink.Conn, do func(*Address) error, odd func(error)) error {
	return dump(ctx, c, unix.RTM_GETADDR, unix.RTM_NEWADDR, unix.SizeofIfAddrmsg, ParseAddress, do, odd)
}

// ParseAddress reads a struct ifaddrmsg and what follows. Of a point-to-point
// interface's it gives the near end.
func ParseAddress(b []byte) (*Address, error) {
	if err := tooShort("address", b, unix.SizeofIfAddrmsg); err != nil {
		return nil, err
	}
	var near, far netip.Addr
	for kind, value := range netlink.Attributes(b[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_LOCAL:
			near = addr(value)
		case unix.IFA_ADDRESS:
			far = addr(value)
		}
	}
	if !near.IsValid() {
		near = far
	}
	if !near.IsValid() {
		return nil, fmt.Errorf("cannot read address: of family %d there is none", b[0])
	}
	return &Address{int(word(b[4:])), netip.PrefixFrom(near, int(b[1]))}, nil
}

// Hop is where a route leads.
type Hop struct {
	Index  int // of the interface
	Via    netip.Addr
	Weight int // only of one among several
}

// Route is a route of any table. A Dst or Src that is not valid is any.
type Route struct {
	Family, Protocol, Scope, Type uint8
	Table, Metric, NextHopID      uint32
	Dst, Src                      netip.Prefix
	PrefSrc                       netip.Addr
	Hops                          []Hop
}

const nextHopID = 30 // RTA_NH_ID

// Routes lists the routes of all tables and families.
func Routes(ctx context.Context, c *netlink.Conn, do func(*Route) error, odd func(error)) error {
	return dump(ctx, c, unix.RTM_GETROUTE, unix.RTM_NEWROUTE, unix.SizeofRtMsg, ParseRoute, do, odd)
}

// ParseRoute reads a struct rtmsg and what follows.
func ParseRoute(b []byte) (*Route, error) {
	if err := tooShort("route", b, unix.SizeofRtMsg); err != nil {
		return nil, err
	}
	r := &Route{Family: b[0], Table: uint32(b[4]), Protocol: b[5], Scope: b[6], Type: b[7]}
	var only Hop
	for kind, value := range netlink.Attributes(b[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			r.Dst = netip.PrefixFrom(addr(value), int(b[1]))
		case unix.RTA_SRC:
			r.Src = netip.PrefixFrom(addr(value), int(b[2]))
		case unix.RTA_PREFSRC:
			r.PrefSrc = addr(value)
		case unix.RTA_PRIORITY:
			r.Metric = small(value)
		case unix.RTA_TABLE:
			r.Table = small(value)
		case nextHopID:
			r.NextHopID = small(value)
		case unix.RTA_OIF:
			only.Index = int(small(value))
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			only.Via = via(kind, value)
		case unix.RTA_MULTIPATH:
			r.Hops = hops(value)
		}
	}
	if len(r.Hops) == 0 && (only.Index != 0 || only.Via.IsValid()) {
		r.Hops = []Hop{only}
	}
	return r, nil
}

// via reads a gateway; RTA_VIA has its family in front, as it is another than
// the route's.
func via(kind uint16, value []byte) netip.Addr {
	if kind == unix.RTA_VIA && len(value) > 2 {
		value = value[2:]
	}
	return addr(value)
}

// hops reads structs rtnexthop, each with attributes.
func hops(b []byte) (all []Hop) {
	for len(b) >= unix.SizeofRtNexthop && len(all) < maxList {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtNexthop || size > len(b) {
			return all
		}
		hop := Hop{Index: int(int32(word(b[4:]))), Weight: int(b[3]) + 1}
		for kind, value := range netlink.Attributes(b[unix.SizeofRtNexthop:size]) {
			if kind == unix.RTA_GATEWAY || kind == unix.RTA_VIA {
				hop.Via = via(kind, value)
			}
		}
		all = append(all, hop)
		b = b[min((size+3)&^3, len(b)):]
	}
	return all
}

// Rule says which table routes a packet. What is zero, or not valid, matches
// any.
type Rule struct {
	Family, TOS, Action, Protocol, IPProtocol uint8
	Invert                                    bool // it holds for what does not match
	Priority, Table, Goto                     uint32
	Mark, Mask                                uint32
	From, To                                  netip.Prefix
	In, Out                                   string // interfaces
	UIDs                                      *[2]uint32
	SrcPorts, DstPorts                        *[2]uint16
}

// Rules lists the routing rules of all families.
func Rules(ctx context.Context, c *netlink.Conn, do func(*Rule) error, odd func(error)) error {
	return dump(ctx, c, unix.RTM_GETRULE, unix.RTM_NEWRULE, ruleHead, ParseRule, do, odd)
}

const ruleHead = 12 // struct fib_rule_hdr

// ParseRule reads a struct fib_rule_hdr and what follows.
func ParseRule(b []byte) (*Rule, error) {
	if err := tooShort("routing rule", b, ruleHead); err != nil {
		return nil, err
	}
	r := &Rule{Family: b[0], TOS: b[3], Table: uint32(b[4]), Action: b[7], Invert: word(b[8:])&unix.FIB_RULE_INVERT != 0}
	for kind, value := range netlink.Attributes(b[ruleHead:]) {
		switch kind {
		case unix.FRA_DST:
			r.To = netip.PrefixFrom(addr(value), int(b[1]))
		case unix.FRA_SRC:
			r.From = netip.PrefixFrom(addr(value), int(b[2]))
		case unix.FRA_IIFNAME:
			r.In = netlink.String(value)
		case unix.FRA_OIFNAME:
			r.Out = netlink.String(value)
		case unix.FRA_PROTOCOL:
			r.Protocol = uint8(small(value))
		case unix.FRA_IP_PROTO:
			r.IPProtocol = uint8(small(value))
		case unix.FRA_UID_RANGE:
			if len(value) == 8 {
				r.UIDs = &[2]uint32{word(value), word(value[4:])}
			}
		case unix.FRA_SPORT_RANGE:
			r.SrcPorts = ports(value)
		case unix.FRA_DPORT_RANGE:
			r.DstPorts = ports(value)
		default:
			if field := r.number(kind); field != nil {
				*field = small(value)
			}
		}
	}
	return r, nil
}

func (r *Rule) number(kind uint16) *uint32 {
	switch kind {
	case unix.FRA_PRIORITY:
		return &r.Priority
	case unix.FRA_TABLE:
		return &r.Table
	case unix.FRA_GOTO:
		return &r.Goto
	case unix.FRA_FWMARK:
		return &r.Mark
	case unix.FRA_FWMASK:
		return &r.Mask
	}
	return nil
}

func ports(b []byte) *[2]uint16 {
	if len(b) != 4 {
		return nil
	}
	return &[2]uint16{binary.NativeEndian.Uint16(b), binary.NativeEndian.Uint16(b[2:])}
}

// Neighbour is an entry of a table of neighbours, of ARP or NDP.
type Neighbour struct {
	Family, Flags uint8  // NTF_…
	State         uint16 // NUD_…
	Index         int    // of the interface
	IP            netip.Addr
	MAC           net.HardwareAddr
}

// Neighbours lists the neighbours of all families.
func Neighbours(ctx context.Context, c *netlink.Conn, do func(*Neighbour) error, odd func(error)) error {
	return dump(ctx, c, unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, neighbourHead, ParseNeighbour, do, odd)
}

const neighbourHead = 12 // struct ndmsg

// ParseNeighbour reads a struct ndmsg and what follows.
func ParseNeighbour(b []byte) (*Neighbour, error) {
	if err := tooShort("neighbour", b, neighbourHead); err != nil {
		return nil, err
	}
	n := &Neighbour{Family: b[0], Index: int(int32(word(b[4:]))), State: binary.NativeEndian.Uint16(b[8:]), Flags: b[10]}
	for kind, value := range netlink.Attributes(b[neighbourHead:]) {
		switch kind {
		case unix.NDA_DST:
			n.IP = addr(value)
		case unix.NDA_LLADDR:
			n.MAC = hardware(value)
		}
	}
	return n, nil
}
