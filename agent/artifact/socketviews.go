package artifact

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// maxViewed bounds the sockets of one kind and namespace that are compared,
// 8 bytes each for either view.
const maxViewed = 1 << 20

// socketView is what two lists of one kind of sockets say at one time: inodes,
// ascending. A socket without one is not compared.
type socketView struct {
	diag, proc []uint64
}

// checkSockets compares sock_diag with /proc/net in each network namespace: a
// rootkit that takes a connection out of one often forgets the other. Where the
// kernel has not both lists there is nothing to compare.
func (h *Host) checkSockets(d *differ) error {
	if !h.running() {
		return nil
	}
	spaces, err := h.netSpaces(d.s)
	if err != nil {
		return err
	}
	kinds := h.comparedKinds()
	for _, ns := range spaces {
		if len(ns.pids) == 0 { // there is no /proc/PID/net to read it by
			continue
		}
		if err := h.checkSpace(d, ns, kinds); err != nil {
			return err
		}
	}
	return nil
}

// comparedKinds gives those that both views can tell of.
func (h *Host) comparedKinds() []socketKind {
	return slices.DeleteFunc(slices.Clone(socketKinds), func(k socketKind) bool {
		return k.dump == nil || k.parse == nil || !h.askable(k.module)
	})
}

func (h *Host) checkSpace(d *differ, ns namespace, kinds []socketKind) error {
	conn, err := h.dial(ns, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		d.s.failed(fmt.Sprintf("sock_diag of network namespace %d", ns.id), err)
		return nil
	}
	defer conn.Close()
	for _, k := range kinds {
		shown := fmt.Sprintf("comparison of %s of network namespace %d", k.name, ns.id)
		look := func(suspects map[uint64]Text) (socketView, error) { return h.lookAtSockets(d.s, conn, ns, k, suspects) }
		suspects, err := compareSockets(d, look)
		switch {
		case d.s.ctx.Err() != nil:
			return d.s.ctx.Err()
		case noList(err): // raw_diag, for one, is left out of many kernels
		case errors.Is(err, netlink.ErrChanged):
			d.s.note(shown, NoteChanged, err.Error())
		case err != nil:
			d.s.failed(shown, err)
		}
		if err := d.tellSockets(ns, k, suspects); err != nil {
			return err
		}
	}
	return nil
}

// suspectSocket is one that each look found in one view alone.
type suspectSocket struct {
	inode  uint64
	inDiag bool
	about  Text
}

// compareSockets looks until no difference is left, or three looks have found
// the same ones: sockets come and go between two lists. A look describes the
// sockets that are keys of suspects.
func compareSockets(d *differ, look func(suspects map[uint64]Text) (socketView, error)) ([]suspectSocket, error) {
	var left []suspectSocket
	about := map[uint64]Text{}
	for i := range looks {
		if i > 0 {
			if err := pause(d.s.ctx, lookAgain); err != nil {
				return nil, err
			}
		}
		view, err := look(about)
		if err != nil {
			return nil, err
		}
		now := view.differences()
		if i > 0 {
			now = slices.DeleteFunc(now, func(s suspectSocket) bool { return !slices.Contains(left, s) })
		}
		left = now[:min(len(now), maxSuspects)]
		if len(left) == 0 {
			return nil, nil
		}
		for _, s := range left {
			if _, known := about[s.inode]; !known {
				about[s.inode] = ""
			}
		}
	}
	for i, s := range left {
		left[i].about = about[s.inode]
	}
	return left, nil
}

// differences gives the sockets that one view alone has.
func (v socketView) differences() (all []suspectSocket) {
	a, b := v.diag, v.proc
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			all = append(all, suspectSocket{inode: a[0], inDiag: true})
			a = a[1:]
		case len(a) == 0 || b[0] < a[0]:
			all = append(all, suspectSocket{inode: b[0]})
			b = b[1:]
		default:
			a, b = a[1:], b[1:]
		}
	}
	return all
}

func (d *differ) tellSockets(ns namespace, k socketKind, suspects []suspectSocket) error {
	for _, s := range suspects {
		views := map[string]Text{"sock_diag": yes(s.inDiag), "/proc/net/" + k.name: yes(!s.inDiag)}
		detail := fmt.Sprintf("%s socket of network namespace %d: %s", k.name, ns.id, s.about)
		if err := d.tell(CheckSocket, fmt.Sprintf("socket %d", s.inode), views, detail); err != nil {
			return err
		}
	}
	return nil
}

// errMoved says that the process that a namespace was read through is in
// another now.
var errMoved = errors.New("the process that shows it has left it")

// lookAtSockets reads both views, the quicker one first.
func (h *Host) lookAtSockets(s *sheet, conn *netlink.Conn, ns namespace, k socketKind, suspects map[uint64]Text) (view socketView, err error) {
	keep := func(list *[]uint64, row *Socket) {
		if row.Inode == 0 || len(*list) == maxViewed {
			return
		}
		*list = append(*list, row.Inode)
		if _, wanted := suspects[row.Inode]; wanted {
			suspects[row.Inode] = describeSocket(row)
		}
	}
	err = k.dump(s.ctx, conn, func(row *Socket) error {
		if !unlistedState(k.name, row.State) {
			keep(&view.diag, row)
		}
		return nil
	}, ignore)
	if err != nil {
		return view, err
	}
	f, pid, err := h.openThrough(ns, "net/"+k.name)
	if err != nil {
		return view, err
	}
	defer f.Close()
	err = s.linesOf(f.Name(), f, func(line []byte) error {
		if row := k.parse(line); row != nil {
			row.State = socketState(k.name, row.State)
			keep(&view.proc, row)
		}
		return nil
	})
	if id, err := h.namespaceOf(strconv.Itoa(pid), "net"); err != nil || id != ns.id {
		return view, errMoved
	}
	for _, list := range []*[]uint64{&view.diag, &view.proc} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return view, err
}

// unlistedState tells whether /proc/net leaves a socket out by right: those of
// TCP that are bound to a port and neither connected nor listening.
func unlistedState(kind, state string) bool {
	return (kind == "tcp" || kind == "tcp6") && (state == "CLOSE" || state == "BOUND_INACTIVE")
}

func describeSocket(row *Socket) Text {
	switch {
	case row.LocalIP != "":
		end := func(ip string, port uint16) string { return net.JoinHostPort(ip, strconv.Itoa(int(port))) }
		return Text(fmt.Sprintf("%s %s to %s", row.State, end(row.LocalIP, row.LocalPort), end(row.RemoteIP, row.RemotePort)))
	case row.Path != "":
		return Text(row.State+" ") + row.Path
	}
	return Text(fmt.Sprintf("%s type %s protocol %s", row.State, row.Type, row.Protocol))
}
