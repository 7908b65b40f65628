package artifact

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
	"github.com/quicklime-ir/quicklime/agent/artifact/rtnetlink"
)

// maxLinkNames bounds the interfaces of a namespace whose names are kept.
const maxLinkNames = 64 << 10

// quietly ignores that a list changed while it was read, or has an odd element,
// where it is only read to name what another one tells.
func quietly(err error) error {
	if errors.Is(err, netlink.ErrChanged) {
		return nil
	}
	return err
}

func ignore(error) {}

// linkNames names the interfaces of the namespace that c is of, by index.
func linkNames(s *sheet, c *netlink.Conn) (map[int]Text, error) {
	names := map[int]Text{}
	return names, quietly(rtnetlink.Links(s.ctx, c, func(l *rtnetlink.Link) error {
		if len(names) < maxLinkNames {
			names[l.Index] = clip(l.Name, maxWord)
		}
		return nil
	}, ignore))
}

func askInterfaces(a *answer, c *netlink.Conn, ns namespace) error {
	addresses := map[int][]string{}
	err := rtnetlink.Addresses(a.s.ctx, c, func(at *rtnetlink.Address) error {
		if list := addresses[at.Index]; len(list) < maxWord && len(addresses) < maxLinkNames {
			addresses[at.Index] = append(list, at.Prefix.String())
		}
		return nil
	}, a.odd)
	if err := quietly(err); err != nil {
		return err
	}
	names, err := linkNames(a.s, c)
	if err != nil {
		return err
	}
	return rtnetlink.Links(a.s.ctx, c, func(l *rtnetlink.Link) error {
		row := interfaceRow(l)
		row.NetNS, row.Addresses, row.Master = ns.id, addresses[l.Index], names[l.Master]
		return a.put(row)
	}, a.odd)
}

// linkStates name the states of RFC 2863, IF_OPER_… of linux/if.h.
var linkStates = []string{"", "not present", "down", "lower layer down", "testing", "dormant", "up"}

func interfaceRow(l *rtnetlink.Link) *Interface {
	row := &Interface{Name: clip(l.Name, maxWord), Index: l.Index, MAC: l.MAC.String(), MTU: l.MTU, Flags: linkFlags(l.Flags),
		Promisc: l.Promiscuity > 0 || l.Flags&unix.IFF_PROMISC != 0, RxBytes: l.RxBytes, RxPackets: l.RxPackets, TxBytes: l.TxBytes, TxPackets: l.TxPackets,
		RxErrors: l.RxErrors, TxErrors: l.TxErrors, RxDropped: l.RxDropped, TxDropped: l.TxDropped,
		Kind: clip(l.Kind, maxWord), Alias: clip(l.Alias, maxWord), PermMAC: l.PermMAC.String(), Parent: l.Parent, ParentNetNS: l.ParentNS,
		Promiscuity: l.Promiscuity, AllMulti: l.AllMulti, XDP: l.XDP}
	for _, name := range l.AltNames {
		row.AltNames = append(row.AltNames, clip(name, maxWord))
	}
	if int(l.OperState) < len(linkStates) {
		row.State = linkStates[l.OperState]
	}
	return row
}

// linkFlags names those flags of linux/if.h that Go's net package knows, by its
// words.
func linkFlags(flags uint32) []string {
	var names []string
	for _, f := range []struct {
		flag uint32
		name string
	}{{unix.IFF_UP, "up"}, {unix.IFF_BROADCAST, "broadcast"}, {unix.IFF_LOOPBACK, "loopback"}, {unix.IFF_POINTOPOINT, "pointtopoint"},
		{unix.IFF_MULTICAST, "multicast"}, {unix.IFF_RUNNING, "running"}} {
		if flags&f.flag != 0 {
			names = append(names, f.name)
		}
	}
	return names
}

func askRoutes(a *answer, c *netlink.Conn, ns namespace) error {
	names, err := linkNames(a.s, c)
	if err != nil {
		return err
	}
	return rtnetlink.Routes(a.s.ctx, c, func(r *rtnetlink.Route) error {
		row := routeRow(r, names)
		row.NetNS = ns.id
		return a.put(row)
	}, a.odd)
}

// routeTypes name RTN_… of linux/rtnetlink.h.
var routeTypes = []string{"unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw", "nat", "xresolve"}

// protocols name who made a route, RTPROT_… of linux/rtnetlink.h.
var protocols = map[uint8]string{1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 10: "mrt", 11: "zebra", 12: "bird", 14: "xorp",
	15: "ntk", 16: "dhcp", 17: "mrouted", 18: "keepalived", 42: "babel", 99: "openr", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp"}

func protocolName(n uint8) string {
	if name, ok := protocols[n]; ok || n == 0 {
		return name
	}
	return strconv.Itoa(int(n))
}

// at names an element of a list that begins at 0, or gives the number.
func at(names []string, n uint8) string {
	if int(n) < len(names) {
		return names[n]
	}
	return strconv.Itoa(int(n))
}

func routeRow(r *rtnetlink.Route, names map[int]Text) *Route {
	row := &Route{Destination: prefixText(r.Dst), Source: prefixText(r.Src), PrefSource: addrText(r.PrefSrc), Metric: uint64(r.Metric), Table: r.Table,
		Type: at(routeTypes, r.Type), Protocol: protocolName(r.Protocol), Scope: r.Scope, NextHopID: r.NextHopID}
	bits, width := 32, 4
	if r.Family == unix.AF_INET6 {
		bits, width = 128, 8
	}
	if row.Destination == "" {
		row.Destination = map[uint8]string{unix.AF_INET: "0.0.0.0/0", unix.AF_INET6: "::/0"}[r.Family]
	}
	flags := 1
	if len(r.Hops) > 0 {
		row.Interface, row.Gateway = names[r.Hops[0].Index], addrText(r.Hops[0].Via)
	}
	if row.Gateway != "" {
		flags |= 2
	}
	if r.Dst.IsValid() && r.Dst.Bits() == bits {
		flags |= 4
	}
	if r.Type == unix.RTN_UNREACHABLE || r.Type == unix.RTN_PROHIBIT {
		flags |= 0x200
	}
	row.Flags = fmt.Sprintf("%0*X", width, flags)
	if len(r.Hops) > 1 {
		for _, hop := range r.Hops {
			row.NextHops = append(row.NextHops, NextHop{names[hop.Index], addrText(hop.Via), hop.Weight})
		}
	}
	return row
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// ruleActions name FR_ACT_… of linux/fib_rules.h.
var ruleActions = []string{"unspec", "table", "goto", "nop", "res3", "res4", "blackhole", "unreachable", "prohibit"}

func askRoutingRules(a *answer, c *netlink.Conn, ns namespace) error {
	return rtnetlink.Rules(a.s.ctx, c, func(r *rtnetlink.Rule) error {
		return a.put(&RoutingRule{NetNS: ns.id, Family: familyName(r.Family), Priority: r.Priority, Action: at(ruleActions, r.Action), Table: r.Table, Goto: r.Goto,
			Not: r.Invert, From: prefixText(r.From), To: prefixText(r.To), InInterface: clip(r.In, maxWord), OutInterface: clip(r.Out, maxWord),
			Mark: r.Mark, Mask: r.Mask, TOS: r.TOS, IPProtocol: r.IPProtocol, UIDs: r.UIDs, SrcPorts: r.SrcPorts, DstPorts: r.DstPorts,
			Protocol: protocolName(r.Protocol)})
	}, a.odd)
}

func familyName(n uint8) string {
	switch n {
	case unix.AF_INET:
		return "inet"
	case unix.AF_INET6:
		return "inet6"
	}
	return strconv.Itoa(int(n))
}

func askNeighbours(a *answer, c *netlink.Conn, ns namespace) error {
	names, err := linkNames(a.s, c)
	if err != nil {
		return err
	}
	return rtnetlink.Neighbours(a.s.ctx, c, func(n *rtnetlink.Neighbour) error {
		return a.put(&Neighbour{NetNS: ns.id, IP: addrText(n.IP), MAC: n.MAC.String(), Interface: names[n.Index], Flags: arpFlags(n),
			State: neighbourState(n.State), Router: n.Flags&unix.NTF_ROUTER != 0})
	}, a.odd)
}

// arpFlags gives the flags that /proc/net/arp has for an entry.
// Source: linux/net/ipv4/arp.c, arp_state_to_flags.
func arpFlags(n *rtnetlink.Neighbour) string {
	const complete = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY
	flags := 0
	if n.State&complete != 0 {
		flags |= 2
	}
	if n.State&unix.NUD_PERMANENT != 0 {
		flags |= 4
	}
	if n.Flags&unix.NTF_PROXY != 0 {
		flags |= 8
	}
	return fmt.Sprintf("%#x", flags)
}

// neighbourState names the bits NUD_… of linux/neighbour.h that are set.
func neighbourState(state uint16) string {
	names := []string{"incomplete", "reachable", "stale", "delay", "probe", "failed", "noarp", "permanent"}
	var set []string
	for i, name := range names {
		if state&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	return strings.Join(set, ",")
}
