package artifact

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Route is a row of the table routes: a route of any table, as rtnetlink tells
// it. Where that cannot be asked it is a line of /proc/net/route, the main IPv4
// table, or of ipv6_route, which tell only the first fields.
type Route struct {
	NetNS       uint64 `json:"netns"`
	Interface   Text   `json:"interface"`        // of the first way it leads
	Destination string `json:"destination"`      // ADDRESS/BITS; 0.0.0.0/0 or ::/0 is the default
	Source      string `json:"source,omitempty"` // IPv6 only
	Gateway     string `json:"gateway,omitempty"`
	Metric      uint64 `json:"metric"`
	// Flags are in hex, as in linux/route.h and ipv6_route.h; rtnetlink knows
	// of them 1 up, 2 gateway, 4 host and 200 reject.
	Flags string `json:"flags"`

	Table      uint32    `json:"table,omitempty"`    // 254 main, 255 local, 253 default
	Type       string    `json:"type,omitempty"`     // unicast, local, broadcast, blackhole …
	Protocol   string    `json:"protocol,omitempty"` // who made it: kernel, boot, static, ra, dhcp …
	Scope      uint8     `json:"scope,omitempty"`    // 0 universe, 253 link, 254 host
	PrefSource string    `json:"pref_source,omitempty"`
	NextHops   []NextHop `json:"next_hops,omitempty"` // only where there are several, at most 256
	NextHopID  uint32    `json:"next_hop_id,omitempty"`
}

// NextHop is one of several ways that a route leads.
type NextHop struct {
	Interface Text   `json:"interface"`
	Gateway   string `json:"gateway,omitempty"`
	Weight    int    `json:"weight"`
}

// RoutingRule is a row of the table routing_rules: which table routes which
// packets. What is left out matches any.
type RoutingRule struct {
	NetNS        uint64     `json:"netns"`
	Family       string     `json:"family"` // inet, inet6, or its number
	Priority     uint32     `json:"priority"`
	Action       string     `json:"action"`          // table, goto, nop, blackhole, unreachable, prohibit
	Table        uint32     `json:"table,omitempty"` // as in the table routes
	Goto         uint32     `json:"goto,omitempty"`  // a priority
	Not          bool       `json:"not,omitempty"`   // it holds for what does not match
	From         string     `json:"from,omitempty"`
	To           string     `json:"to,omitempty"`
	InInterface  Text       `json:"in_interface,omitempty"`
	OutInterface Text       `json:"out_interface,omitempty"`
	Mark         uint32     `json:"mark,omitempty"`
	Mask         uint32     `json:"mask,omitempty"` // of the mark
	TOS          uint8      `json:"tos,omitempty"`
	IPProtocol   uint8      `json:"ip_protocol,omitempty"`
	UIDs         *[2]uint32 `json:"uids,omitempty"` // first and last
	SrcPorts     *[2]uint16 `json:"src_ports,omitempty"`
	DstPorts     *[2]uint16 `json:"dst_ports,omitempty"`
	Protocol     string     `json:"protocol,omitempty"` // who made it, as of a route
}

// Neighbour is a row of the table neighbours: an entry of the tables of ARP and
// NDP, or where these cannot be asked for a line of /proc/net/arp.
type Neighbour struct {
	NetNS     uint64 `json:"netns"`
	IP        string `json:"ip"`
	MAC       string `json:"mac"`
	Interface Text   `json:"interface"`
	Flags     string `json:"flags"`           // in hex, as in linux/if_arp.h: 2 complete, 4 permanent, 8 answered for others
	State     string `json:"state,omitempty"` // reachable, stale, failed …, by linux/neighbour.h
	Router    bool   `json:"router,omitempty"`
}

// Interface is a row of the table interfaces. Where rtnetlink cannot be asked
// its name, counters and IPv6 addresses alone are known.
type Interface struct {
	NetNS     uint64   `json:"netns"`
	Name      Text     `json:"name"`
	Index     int      `json:"index,omitempty"`
	MAC       string   `json:"mac,omitempty"`
	MTU       int      `json:"mtu,omitempty"`
	Flags     []string `json:"flags,omitempty"`   // up, broadcast, loopback …
	Promisc   bool     `json:"promisc,omitempty"` // it takes packets that are not for it: a sniffer may run
	Addresses []string `json:"addresses,omitempty"`
	RxBytes   uint64   `json:"rx_bytes"`
	RxPackets uint64   `json:"rx_packets"`
	TxBytes   uint64   `json:"tx_bytes"`
	TxPackets uint64   `json:"tx_packets"`

	RxErrors    uint64 `json:"rx_errors,omitempty"`
	TxErrors    uint64 `json:"tx_errors,omitempty"`
	RxDropped   uint64 `json:"rx_dropped,omitempty"`
	TxDropped   uint64 `json:"tx_dropped,omitempty"`
	Kind        Text   `json:"kind,omitempty"` // veth, bridge, vxlan, wireguard …; none of a physical one
	Alias       Text   `json:"alias,omitempty"`
	AltNames    []Text `json:"alt_names,omitempty"`
	PermMAC     string `json:"perm_mac,omitempty"`    // that it was made with
	Master      Text   `json:"master,omitempty"`      // the bridge, bond or VRF that it is part of
	Parent      int    `json:"parent,omitempty"`      // index of what it is on top of, or of a veth's other end
	ParentNetNS *int32 `json:"parent_nsid,omitempty"` // where that is in another namespace: the number that this one gives it
	State       string `json:"state,omitempty"`       // up, down, dormant …, by RFC 2863
	Promiscuity uint32 `json:"promiscuity,omitempty"` // how many ask for all packets
	AllMulti    uint32 `json:"allmulti,omitempty"`    // and for all multicast ones
	XDP         uint32 `json:"xdp_program,omitempty"` // as in the table ebpf_programs: it sees packets before the kernel
}

// throughProc writes a row for each line of a file of a network namespace that
// parse has one for; the heading is skipped by having none.
func throughProc[R any](h *Host, s *sheet, ns namespace, file string, parse func(line []byte) *R, place func(*R, namespace)) error {
	return h.throughNamespace(s, ns, "net/"+file, func(line []byte) error {
		row := parse(line)
		if row == nil {
			return nil
		}
		place(row, ns)
		return s.put(row)
	})
}

func fillRoutes(h *Host, s *sheet) error {
	return h.eachNetSpace(s, unix.NETLINK_ROUTE, "routes", askRoutes, func(ns namespace) error {
		place := func(r *Route, ns namespace) { r.NetNS = ns.id }
		if err := throughProc(h, s, ns, "route", parseRoute, place); err != nil {
			return err
		}
		return throughProc(h, s, ns, "ipv6_route", parseRoute6, place)
	})
}

func fillNeighbours(h *Host, s *sheet) error {
	return h.eachNetSpace(s, unix.NETLINK_ROUTE, "neighbours", askNeighbours, func(ns namespace) error {
		return throughProc(h, s, ns, "arp", parseARP, func(n *Neighbour, ns namespace) { n.NetNS = ns.id })
	})
}

// fillInterfaces writes the table interfaces.
func fillInterfaces(h *Host, s *sheet) error {
	return h.eachNetSpace(s, unix.NETLINK_ROUTE, "interfaces", askInterfaces, func(ns namespace) error {
		addresses := map[string][]string{}
		err := h.throughNamespace(s, ns, "net/if_inet6", func(line []byte) error {
			if name, address := parseIfInet6(line); name != "" && len(addresses[name]) < maxWord {
				addresses[name] = append(addresses[name], address)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return throughProc(h, s, ns, "dev", parseDev, func(row *Interface, ns namespace) {
			row.NetNS, row.Addresses = ns.id, addresses[string(row.Name)]
		})
	})
}

// fillRoutingRules writes the table routing_rules, which no file of /proc has.
func fillRoutingRules(h *Host, s *sheet) error {
	return h.eachNetSpace(s, unix.NETLINK_ROUTE, "routing rules", askRoutingRules, nil)
}

// parseRoute reads a line of route: Iface Destination Gateway Flags RefCnt Use
// Metric Mask MTU Window IRTT. Source: linux/net/ipv4/fib_trie.c,
// fib_route_seq_show.
func parseRoute(line []byte) *Route {
	f := strings.Fields(string(line))
	if len(f) < 8 || len(f[1]) != 8 || len(f[2]) != 8 || len(f[7]) != 8 {
		return nil
	}
	destination, err1 := parseHexIP(f[1])
	gateway, err2 := parseHexIP(f[2])
	metric, err3 := strconv.ParseUint(f[6], 10, 64)
	dotted, err4 := parseHexIP(f[7])
	_, err5 := strconv.ParseUint(f[3], 16, 32)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil || err5 != nil {
		return nil
	}
	bits, _ := net.IPMask(netip.MustParseAddr(dotted).AsSlice()).Size()
	if gateway == "0.0.0.0" {
		gateway = ""
	}
	return &Route{Interface: Text(f[0]), Destination: fmt.Sprintf("%s/%d", destination, bits), Gateway: gateway, Metric: metric, Flags: f[3]}
}

// parseRoute6 reads a line of ipv6_route: destination and its bits, source and
// its bits, next hop, metric, references, use, flags, device; all in hex.
// Source: linux/net/ipv6/ip6_fib.c, ipv6_route_native_seq_show.
func parseRoute6(line []byte) *Route {
	f := strings.Fields(string(line))
	if len(f) < 10 {
		return nil
	}
	destination, err1 := parsePrefix6(f[0], f[1])
	source, err2 := parsePrefix6(f[2], f[3])
	gateway, err3 := parsePrefix6(f[4], "80")
	metric, err4 := strconv.ParseUint(f[5], 16, 32)
	_, err5 := strconv.ParseUint(f[8], 16, 32)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil || err5 != nil {
		return nil
	}
	row := &Route{Interface: Text(f[9]), Destination: destination.String(), Metric: metric, Flags: f[8]}
	if source.Bits() > 0 {
		row.Source = source.String()
	}
	if !gateway.Addr().IsUnspecified() {
		row.Gateway = gateway.Addr().String()
	}
	return row
}

// parsePrefix6 reads 32 hex digits in network order, and the bits, in hex.
func parsePrefix6(address, bits string) (netip.Prefix, error) {
	raw, err := hex.DecodeString(address)
	if err != nil || len(raw) != 16 {
		return netip.Prefix{}, fmt.Errorf("cannot read address %.80q: want 32 hex digits", address)
	}
	n, err := strconv.ParseUint(bits, 16, 8)
	if err != nil || n > 128 {
		return netip.Prefix{}, fmt.Errorf("cannot read prefix length %.20q: want at most 80 in hex", bits)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte(raw)), int(n)), nil
}

// parseARP reads a line of arp: IP, HW type, flags, HW address, mask, device.
// Source: linux/net/ipv4/arp.c, arp_format_neigh_entry.
func parseARP(line []byte) *Neighbour {
	f := strings.Fields(string(line))
	if len(f) < 6 || !strings.HasPrefix(f[2], "0x") {
		return nil
	}
	addr, err := netip.ParseAddr(f[0])
	if err != nil || !addr.Is4() {
		return nil
	}
	return &Neighbour{IP: addr.String(), MAC: f[3], Interface: Text(f[5]), Flags: f[2]}
}

// parseDev reads a line of dev: NAME: then eight counters received and eight
// sent. Source: linux/net/core/net-procfs.c, dev_seq_printf_stats.
func parseDev(line []byte) *Interface {
	at := strings.LastIndexByte(string(line), ':')
	if at < 0 {
		return nil
	}
	f := strings.Fields(string(line[at+1:]))
	if len(f) != 16 {
		return nil
	}
	row := &Interface{Name: clip(strings.TrimSpace(string(line[:at])), maxWord)}
	for i, field := range map[int]*uint64{0: &row.RxBytes, 1: &row.RxPackets, 8: &row.TxBytes, 9: &row.TxPackets} {
		n, err := strconv.ParseUint(f[i], 10, 64)
		if err != nil {
			return nil
		}
		*field = n
	}
	return row
}

// parseIfInet6 reads a line of if_inet6: address, index, prefix length, scope,
// flags, name; numbers in hex.
func parseIfInet6(line []byte) (name, address string) {
	f := strings.Fields(string(line))
	if len(f) != 6 {
		return "", ""
	}
	prefix, err := parsePrefix6(f[0], f[2])
	if err != nil {
		return "", ""
	}
	return f[5], prefix.String()
}
