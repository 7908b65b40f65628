package artifact

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Route is a row of the table routes: a line of /proc/net/route, the main
// IPv4 table, or of ipv6_route, every IPv6 table.
type Route struct {
	NetNS       uint64 `json:"netns"`
	Interface   Text   `json:"interface"`
	Destination string `json:"destination"`      // ADDRESS/BITS; 0.0.0.0/0 or ::/0 is the default
	Source      string `json:"source,omitempty"` // IPv6 only
	Gateway     string `json:"gateway,omitempty"`
	Metric      uint64 `json:"metric"`
	Flags       string `json:"flags"` // in hex, as in linux/route.h and ipv6_route.h
}

// Neighbour is a row of the table neighbours: a line of /proc/net/arp.
type Neighbour struct {
	NetNS     uint64 `json:"netns"`
	IP        string `json:"ip"`
	MAC       string `json:"mac"`
	Interface Text   `json:"interface"`
	Flags     string `json:"flags"` // in hex, as in linux/if_arp.h: 2 complete, 4 permanent
}

// Interface is a row of the table interfaces. Addresses of IPv4, flags and MAC
// are known for the agent's own network namespace only.
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
}

// perNamespace writes a row for each line of a file of every network
// namespace that parse has one for; the heading is skipped by having none.
func perNamespace[R any](h *Host, s *sheet, file string, parse func(line []byte) *R, place func(*R, namespace)) error {
	spaces, err := h.netSpaces(s)
	if err != nil {
		return err
	}
	for _, ns := range spaces {
		err := h.throughNamespace(s, ns, "net/"+file, func(line []byte) error {
			row := parse(line)
			if row == nil {
				return nil
			}
			place(row, ns)
			return s.put(row)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func fillRoutes(h *Host, s *sheet) error {
	place := func(r *Route, ns namespace) { r.NetNS = ns.id }
	if err := perNamespace(h, s, "route", parseRoute, place); err != nil {
		return err
	}
	return perNamespace(h, s, "ipv6_route", parseRoute6, place)
}

func fillNeighbours(h *Host, s *sheet) error {
	return perNamespace(h, s, "arp", parseARP, func(n *Neighbour, ns namespace) { n.NetNS = ns.id })
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

// fillInterfaces writes the table interfaces.
func fillInterfaces(h *Host, s *sheet) error {
	spaces, err := h.netSpaces(s)
	if err != nil {
		return err
	}
	own, _ := h.namespaceOf("self", "net")
	for _, ns := range spaces {
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
		err = h.throughNamespace(s, ns, "net/dev", func(line []byte) error {
			row := parseDev(line)
			if row == nil {
				return nil
			}
			row.NetNS, row.Addresses = ns.id, addresses[string(row.Name)]
			if ns.id == own && own != 0 {
				row.describe(s)
			}
			return s.put(row)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// describe adds what netlink tells of an interface of our own namespace.
func (i *Interface) describe(s *sheet) {
	known, err := net.InterfaceByName(string(i.Name))
	if err != nil {
		s.failed("interface "+string(i.Name), err)
		return
	}
	i.Index, i.MTU, i.MAC = known.Index, known.MTU, known.HardwareAddr.String()
	i.Flags = strings.Split(known.Flags.String(), "|")
	i.Promisc = promiscuous(string(i.Name))
	addresses, err := known.Addrs()
	if err != nil {
		s.failed("interface "+string(i.Name), err)
		return
	}
	i.Addresses = nil
	for _, a := range addresses[:min(len(addresses), maxWord)] {
		i.Addresses = append(i.Addresses, a.String())
	}
}

const flagPromisc = 0x100 // IFF_PROMISC of linux/if.h

func promiscuous(name string) bool {
	data, err := readSmall("/sys/class/net/"+name+"/flags", maxWord)
	flags, err2 := strconv.ParseUint(strings.TrimSpace(string(data)), 0, 32)
	return err == nil && err2 == nil && flags&flagPromisc != 0
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
