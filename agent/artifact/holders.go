package artifact

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of what is kept of a walk over all descriptors.
const (
	maxOwners   = 64      // owners of a socket in its row
	maxHolds    = 1 << 20 // holds of all sockets, 16 MiB
	maxBPFHolds = 64 << 10
	maxNetFiles = 4096
	holdersLast = time.Minute // that eBPF's tables make do with the last walk
)

// holders is what processes hold by their descriptors, as one walk over all of
// them found it. It is walked once for sockets, eBPF and network namespaces.
type holders struct {
	at      time.Time
	sockets []socketHold // by inode, process and descriptor
	bpf     []bpfHold
	nets    map[uint64]string // network namespaces, and a file of /proc that holds each
}

// socketHold is one descriptor of a socket, kept small as there may be a
// million.
type socketHold struct {
	inode   uint64
	pid, fd int32
}

// bpfHold is a process's hold on an eBPF program, map or link: the key is the
// line of /proc/PID/fdinfo/FD that names it.
type bpfHold struct {
	key string
	id  uint32
	pid int
}

// bpfKeys tell by which line each kind of descriptor names what it stands for;
// a link's also has the ID of its program.
// Source: linux/kernel/bpf/syscall.c, bpf_prog_show_fdinfo and its like.
var bpfKeys = []struct{ target, key string }{{"bpf-prog", "prog_id"}, {"bpf-map", "map_id"}, {"bpf_link", "link_id"}}

// walkHolders looks through every descriptor. What it finds of eBPF and
// namespaces is kept for the tables that follow.
func (h *Host) walkHolders(s *sheet) (*holders, error) {
	found := &holders{at: time.Now(), nets: map[uint64]string{}}
	var buf []byte
	err := h.eachFD(s, maxScan, func(dir procDir, pid, fd int, target string) error {
		switch {
		case strings.HasPrefix(target, "socket:["):
			found.addSocket(s, pid, fd, target)
		case strings.HasPrefix(target, "net:["):
			if id, err := parseTag(target, "net"); err == nil && len(found.nets) < maxNetFiles {
				found.nets[id] = h.path("proc", strconv.Itoa(pid), "fd", strconv.Itoa(fd))
			}
		case strings.HasPrefix(target, "anon_inode:"):
			buf = found.addBPF(s, dir, pid, fd, target, buf)
		}
		return s.ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found.sockets, func(a, b socketHold) int {
		return cmp.Or(cmp.Compare(a.inode, b.inode), cmp.Compare(a.pid, b.pid), cmp.Compare(a.fd, b.fd))
	})
	h.recent.Lock()
	defer h.recent.Unlock()
	h.recent.holders = &holders{at: found.at, bpf: found.bpf, nets: found.nets}
	return found, nil
}

func (f *holders) addSocket(s *sheet, pid, fd int, target string) {
	inode, err := parseTag(target, "socket")
	if err != nil || len(f.sockets) == maxHolds {
		return
	}
	f.sockets = append(f.sockets, socketHold{inode, int32(pid), int32(fd)})
	if len(f.sockets) == maxHolds {
		s.note("/proc/*/fd", NoteCut, fmt.Sprintf("owners of sockets beyond %d", maxHolds))
	}
}

func (f *holders) addBPF(s *sheet, dir procDir, pid, fd int, target string, buf []byte) []byte {
	for _, kind := range bpfKeys {
		if !strings.Contains(target, kind.target) || len(f.bpf) == maxBPFHolds {
			continue
		}
		data, _, err := dir.read("fdinfo/"+strconv.Itoa(fd), buf, maxPath)
		if err != nil {
			if !gone(err) {
				s.failed(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd), err)
			}
			return buf
		}
		if id, ok := fdinfoID(data, kind.key); ok {
			f.bpf = append(f.bpf, bpfHold{kind.key, id, pid})
		}
		return data
	}
	return buf
}

// own names a socket's owners in its row.
func (f *holders) own(row *Socket) {
	at, found := slices.BinarySearchFunc(f.sockets, row.Inode, func(hold socketHold, inode uint64) int { return cmp.Compare(hold.inode, inode) })
	if !found || row.Inode == 0 {
		return
	}
	for _, hold := range f.sockets[at:] {
		if hold.inode != row.Inode {
			return
		}
		if len(row.Owners) == maxOwners {
			row.OwnersTruncated = true
			return
		}
		row.Owners = append(row.Owners, SocketOwner{int(hold.pid), int(hold.fd)})
	}
}

// lastHolders gives what the last walk found, or nil where there was none.
func (h *Host) lastHolders() *holders {
	h.recent.Lock()
	defer h.recent.Unlock()
	return h.recent.holders
}

// ebpfOwners gives the processes that hold programs, maps or links, by ID, as
// of the last walk over all descriptors, or of one that is made now.
func (h *Host) ebpfOwners(s *sheet, key string) (map[uint32][]int, error) {
	found := h.lastHolders()
	if found == nil || time.Since(found.at) > holdersLast {
		var err error
		if found, err = h.walkHolders(s); err != nil {
			return nil, err
		}
	}
	owners := map[uint32][]int{}
	for _, hold := range found.bpf {
		if hold.key == key && len(owners[hold.id]) < maxEBPFOwners && !slices.Contains(owners[hold.id], hold.pid) {
			owners[hold.id] = append(owners[hold.id], hold.pid)
		}
	}
	return owners, nil
}
