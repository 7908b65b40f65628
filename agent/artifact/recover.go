package artifact

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a recovery.
const (
	maxFileless = 16 << 10 // files, of which each may keep maxHolders names
	maxHolders  = 64
	maxHeldText = 60 // bytes of a host's name in the name of a member
)

// The PAX records of a recovered file, beside those of WriteFiles.
const (
	paxHolders = "QUICKLIME.holders" // PID/exe, PID/fd/N and PID/map_files/A-B that are this file, parted by spaces
	paxTarget  = "QUICKLIME.target"  // the kernel's name for it, as Text is written
	paxClass   = "QUICKLIME.class"   // why it was taken: a fileClass in words
)

// recoveredRoot is the folder of the tar.
const recoveredRoot = "live_response/recovered"

// fileClass says how a file that has no name is used. The lowest is the most
// suspicious, and is taken first.
type fileClass int

const (
	memfdExe     fileClass = iota // a process runs from anonymous memory
	deletedExe                    // or from a file that was deleted under it
	codeMapping                   // mapped as code: a library from a memfd or a deleted file
	memfdOpen                     // a memfd that is open or mapped
	deletedOpen                   // a deleted file that is open or mapped
	replacedFile                  // a package manager's doing, by its looks: a file of the same name took its place
	sharedMemory                  // not a file to its process: System V and anonymous shared memory
)

func (c fileClass) String() string {
	return [...]string{"memfd_exe", "deleted_exe", "code_mapping", "memfd", "deleted_open", "replaced", "shared_memory"}[c]
}

// noise reports whether files of the class are normal on a host that is updated
// while it runs, and so may take half of what is left at most.
func (c fileClass) noise() bool { return c >= replacedFile }

// fileless is a file that has no name any more, and who holds it.
type fileless struct {
	class   fileClass
	target  string
	first   heldAt
	holders []string // at most maxHolders
	more    int      // and those beyond
}

// heldAt is one way to a file: what, below /proc/PID.
type heldAt struct {
	pid  int
	what string // exe, fd/N, map_files/A-B
}

func (a heldAt) String() string { return strconv.Itoa(a.pid) + "/" + a.what }

// fileKey names a file of this host, as long as it is held.
type fileKey struct{ dev, inode uint64 }

// WriteRecovered copies the files that live on in processes alone: executables
// and open or mapped files that were deleted, and memfds, which never had a
// name. They go to w as one tar stream in PAX format, the most suspicious
// first, each once however many processes hold it, with a name that is ours and
// their own in a PAX record: live_response/recovered/PID/exe or PID/fd/N-NAME.
// Its SHA-256, and who holds it, are in the record.
//
// A file that grows is cut at its first size. Holes are not read; in the tar
// they are zeros. What looks like the leavings of an update comes last, and
// takes half of what is left at most. What could not be read is recorded and
// does not end it; an error means that w failed or ctx ended.
func (h *Host) WriteRecovered(ctx context.Context, w io.Writer, rec *Record) error {
	r := &recovery{
		h: h, s: newSheet(ctx, "", io.Discard, rec), tar: tar.NewWriter(w), limits: h.Limits.filled(),
		found: map[fileKey]*fileless{}, buf: make([]byte, 256<<10), hash: sha256.New(),
	}
	r.s.entry.Source = "recovered"
	if err := r.search(); err != nil {
		return fmt.Errorf("cannot search for deleted files: %w", err)
	}
	if err := r.takeAll(); err != nil {
		return fmt.Errorf("cannot recover deleted files: %w", err)
	}
	if err := r.tar.Close(); err != nil {
		return fmt.Errorf("cannot end the tar: %w", err)
	}
	return nil
}

// recovery finds files without a name, and writes them.
type recovery struct {
	h      *Host
	s      *sheet // for its notes; it has no rows
	tar    *tar.Writer
	limits Limits
	found  map[fileKey]*fileless
	cut    bool
	left   int64 // bytes that may still be taken
	buf    []byte
	hash   hash.Hash
}

// search looks at what each process runs, holds open and has mapped.
func (r *recovery) search() error {
	pids, err := r.h.pids()
	if err != nil {
		r.s.failed("/proc", err)
		return nil
	}
	for _, pid := range pids {
		if err := r.s.ctx.Err(); err != nil {
			return err
		}
		r.searchProcess(pid)
	}
	return nil
}

func (r *recovery) searchProcess(pid int) {
	dir, err := r.h.openProc(strconv.Itoa(pid))
	if err != nil {
		r.s.failed(fmt.Sprintf("/proc/%d", pid), err)
		return
	}
	defer dir.close()
	target, err := dir.link("exe")
	if err == nil && target == "" || gone(err) {
		return // a kernel thread, which holds no files either, or gone
	}
	if err != nil {
		r.s.failed(fmt.Sprintf("/proc/%d/exe", pid), err)
	}
	r.consider(dir, heldAt{pid, "exe"}, target, true)
	err = r.h.eachFDOf(r.s, pid, maxScan, func(dir procDir, pid, fd int, target string) error {
		r.consider(dir, heldAt{pid, "fd/" + strconv.Itoa(fd)}, target, false)
		return r.s.ctx.Err()
	})
	if err == nil {
		r.searchMappings(dir, pid)
	}
}

// searchMappings finds files that are mapped, and need not be open any more.
func (r *recovery) searchMappings(dir procDir, pid int) {
	shown := fmt.Sprintf("/proc/%d/maps", pid)
	all, more, err := r.h.regions(r.s.ctx, dir)
	if err != nil {
		r.s.failed(shown, err)
		return
	}
	if more {
		r.s.note(shown, NoteCut, fmt.Sprintf("more than %d mappings", maxRegions))
	}
	seen := map[string]bool{} // a file's mappings, of code and not, once each
	for _, m := range all {
		key := fmt.Sprintf("%s %d %t", m.dev, m.inode, m.executable())
		if !seen[key] && strings.HasSuffix(m.name, deletedMark) {
			seen[key] = true
			r.consider(dir, heldAt{pid, fmt.Sprintf("map_files/%x-%x", m.start, m.end)}, m.name, m.executable())
		}
	}
}

// consider remembers the file at a place, where it has no name.
func (r *recovery) consider(dir procDir, at heldAt, target string, code bool) {
	if !strings.HasSuffix(target, deletedMark) {
		return
	}
	n, err := openHeld(dir, at.what)
	if err != nil {
		r.s.failed("/proc/"+at.String(), err)
		return
	}
	defer n.close()
	if !n.is(unix.S_IFREG) {
		if !strings.HasPrefix(target, "/") || n.is(unix.S_IFDIR) {
			return // an anon_inode, or a folder, which holds nothing once it is deleted
		}
		r.s.note("/proc/"+at.String(), NoteUnread, n.kindName())
		return
	}
	class := r.classify(n, at, target, code)
	if class != memfdExe && class != memfdOpen && class != sharedMemory && n.stat.Nlink > 0 && r.named(n, target) {
		return // its very name ends as a deleted file's does
	}
	r.add(fileKey{n.dev(), n.stat.Ino}, fileless{class: class, target: target, first: at})
}

func (r *recovery) add(key fileKey, f fileless) {
	known := r.found[key]
	if known == nil {
		if len(r.found) == maxFileless {
			if !r.cut {
				r.s.note("/proc", NoteCut, fmt.Sprintf("more than %d deleted files", maxFileless))
			}
			r.cut = true
			return
		}
		known = &f
		r.found[key] = known
	}
	if f.class < known.class {
		known.class, known.target, known.first = f.class, f.target, f.first
	}
	if len(known.holders) < maxHolders {
		known.holders = append(known.holders, f.first.String())
	} else {
		known.more++
	}
}

// openHeld takes hold of what a process holds, without opening it: a FIFO or
// device does not learn of it.
func openHeld(dir procDir, what string) (*node, error) {
	fd, err := unix.Openat(dir.fd, what, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot hold %s/%s: %w", dir.path, what, err)
	}
	return nodeOf(fd)
}

// classify says what a file without a name is, by the kernel's words for it.
// Source: linux/mm/memfd.c, ipc/shm.c, mm/shmem.c (shmem_zero_setup).
func (r *recovery) classify(n *node, at heldAt, target string, code bool) fileClass {
	name := strings.TrimSuffix(target, deletedMark)
	memfd := strings.HasPrefix(name, "/memfd:")
	switch {
	case memfd && at.what == "exe":
		return memfdExe
	case memfd && code:
		return codeMapping
	case memfd:
		return memfdOpen
	case strings.HasPrefix(name, "/SYSV"), name == "/dev/zero":
		return sharedMemory
	case r.replaced(n, at.pid, name):
		return replacedFile
	case at.what == "exe":
		return deletedExe
	case code:
		return codeMapping
	}
	return deletedOpen
}

// packaged are the folders that package managers fill.
var packaged = []string{"/usr/", "/lib", "/bin/", "/sbin/", "/opt/", "/snap/"}

// replaced reports whether a deleted file looks like one that an update
// replaced: it was root's and in a folder for packages, and where it lay its
// process sees another regular file of root's.
func (r *recovery) replaced(n *node, pid int, name string) bool {
	lies := slices.ContainsFunc(packaged, func(dir string) bool { return strings.HasPrefix(name, dir) })
	if !lies || n.stat.Uid != 0 {
		return false
	}
	root, err := openNode(unix.AT_FDCWD, r.h.path("proc", strconv.Itoa(pid)))
	if err != nil {
		return false
	}
	defer root.close()
	fd, err := unix.Openat(root.fd, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	folder, _, err := openBase(fd, path.Dir(name))
	if err != nil {
		return false
	}
	defer folder.close()
	now, err := openNode(folder.fd, path.Base(name))
	if err != nil {
		return false
	}
	defer now.close()
	return now.is(unix.S_IFREG) && now.stat.Uid == 0
}

// named reports whether a file that has names has the very one, mark and all.
func (r *recovery) named(n *node, target string) bool {
	other, err := openNode(unix.AT_FDCWD, r.h.path(target))
	if err != nil {
		return false
	}
	defer other.close()
	return other.dev() == n.dev() && other.stat.Ino == n.stat.Ino
}

// takeAll writes what was found, the most suspicious first.
func (r *recovery) takeAll() error {
	type pair struct {
		fileKey
		*fileless
	}
	all := make([]pair, 0, len(r.found))
	for key, f := range r.found {
		all = append(all, pair{key, f})
	}
	slices.SortFunc(all, func(a, b pair) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.first.pid, b.first.pid), strings.Compare(a.first.what, b.first.what))
	})
	r.left = r.limits.TotalBytes
	noisy := false
	for _, f := range all {
		if f.class.noise() && !noisy {
			noisy = true
			r.left /= 2
		}
		if err := r.take(f.fileKey, f.fileless); err != nil {
			return err
		}
	}
	if len(all) == 0 {
		r.s.note("/proc", NoteNone, "no deleted files")
	}
	return nil
}

// take writes one file. It fails only when the tar does, or the context ends.
func (r *recovery) take(key fileKey, f *fileless) error {
	e := Entry{Source: "recovered", Path: clip("/proc/"+f.first.String(), maxPath), Started: time.Now()}
	e.Detail = clip(fmt.Sprintf("%s %s; held by %s", f.class, f.target, f.heldBy()), maxPath)
	err := r.copyHeld(key, f, &e)
	e.Ended = time.Now()
	if err != nil {
		e = e.failed(err)
	}
	r.s.rec.Add(e)
	return err
}

func (f *fileless) heldBy() string {
	held := strings.Join(f.holders, " ")
	if f.more > 0 {
		held += fmt.Sprintf(" and %d more", f.more)
	}
	return held
}

var errOther = errors.New("it is another file by now")

// copyHeld takes hold of the file anew, as its holder may have let go of it,
// and writes it.
func (r *recovery) copyHeld(key fileKey, f *fileless, e *Entry) error {
	dir, err := r.h.openProc(strconv.Itoa(f.first.pid))
	if err != nil {
		*e = e.failed(err)
		return nil
	}
	defer dir.close()
	n, err := openHeld(dir, f.first.what)
	if err != nil {
		*e = e.failed(err)
		return nil
	}
	defer n.close()
	if (fileKey{n.dev(), n.stat.Ino}) != key || !n.is(unix.S_IFREG) {
		*e = e.failed(errOther)
		return nil
	}
	fd, err := r.open(n)
	if err != nil {
		*e = e.failed(fmt.Errorf("cannot open: %w", err))
		return nil
	}
	file := patientFile{r.h, fd}
	defer file.close(r.s.ctx)
	return r.write(file, n, f, e)
}

// open opens a regular file for reading, which a user's file system may make
// hang.
func (r *recovery) open(n *node) (int, error) {
	if r.h.hung.Load() >= maxHung {
		return 0, errTooHung
	}
	own, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	type answer struct {
		fd  int
		err error
	}
	got, err := patiently(r.s.ctx, r.h, readWait, func(ctx context.Context) (a answer) {
		defer unix.Close(own)
		a.fd, a.err = (&node{fd: own}).openFile()
		if a.err == nil && ctx.Err() != nil { // nobody waits for it
			unix.Close(a.fd)
			a.err = ctx.Err()
		}
		return a
	})
	if err != nil {
		return 0, err
	}
	return got.fd, got.err
}

// room says how many bytes of a file may be taken, and which limit is in the
// way of the rest.
func (r *recovery) room(n *node) (size int64, limit string) {
	size = int64(min(n.stat.Size, 1<<62))
	for _, l := range []struct {
		bytes int64
		name  string
		holds bool
	}{
		{r.limits.FileBytes, "bytes of one file", true},
		{r.limits.SparseBytes, "bytes of a sparse file", n.sparse()},
		{max(r.left, 0), "bytes of all files", true},
	} {
		if l.holds && size > l.bytes {
			size, limit = l.bytes, l.name
		}
	}
	return size, limit
}

func (r *recovery) write(file patientFile, n *node, f *fileless, e *Entry) error {
	e.Size = int64(n.stat.Size)
	size, limit := r.room(n)
	header := r.header(n, f, size)
	if limit != "" {
		e.Note = NoteCut
		e.Detail = clip(limit+"; "+string(e.Detail), maxPath)
		header.PAXRecords[paxSize] = fmt.Sprint(e.Size)
	}
	if err := r.tar.WriteHeader(header); err != nil {
		return err
	}
	r.left -= size
	read, readErr, err := r.copy(file, size, n.stat.Blocks*512 < n.stat.Size)
	if err != nil {
		return err
	}
	e.Bytes, e.Padded, e.SHA256 = size, size-read, hex.EncodeToString(r.hash.Sum(nil))
	*e = e.failed(readErr)
	var now unix.Statx_t
	if unix.Statx(n.fd, "", statxFlags, statxMask, &now) == nil {
		e.Note = addNote(e.Note, n.since(&now, read < size && readErr == nil))
	}
	return nil
}

// since says how a file changed since it was first seen.
func (n *node) since(now *unix.Statx_t, short bool) string {
	switch {
	case now.Size > n.stat.Size:
		return NoteGrew
	case short || now.Size < n.stat.Size:
		return NoteShrank
	case now.Mtime != n.stat.Mtime:
		return NoteChanged
	}
	return ""
}

// header describes a file; its owners' names are not told, as they may be a
// container's.
func (r *recovery) header(n *node, f *fileless, size int64) *tar.Header {
	st := &n.stat
	// MarshalText of Text does not fail.
	target, _ := clip(f.target, maxPath).MarshalText()
	h := &tar.Header{
		Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: f.memberName(), Size: size, Mode: int64(st.Mode & 0o7777),
		Uid: int(st.Uid), Gid: int(st.Gid), ModTime: timeOf(st.Mtime), AccessTime: timeOf(st.Atime), ChangeTime: timeOf(st.Ctime),
		PAXRecords: map[string]string{
			paxInode: fmt.Sprint(st.Ino), paxDev: device(n.dev()), paxHolders: f.heldBy(), paxClass: f.class.String(),
			paxTarget: strings.ReplaceAll(string(target), "\x00", `\x00`),
		},
	}
	if st.Mask&unix.STATX_BTIME != 0 && st.Btime.Sec != 0 {
		h.PAXRecords[paxBirth] = fmt.Sprintf("%d.%09d", st.Btime.Sec, st.Btime.Nsec)
	}
	return h
}

// memberName gives the file's name in the tar. The host chooses nothing of it
// but letters, digits and a few signs after the number of its descriptor.
func (f *fileless) memberName() string {
	name := path.Join(recoveredRoot, f.first.String())
	if strings.HasPrefix(f.first.what, "fd/") {
		name += "-" + tameName(path.Base(strings.TrimSuffix(f.target, deletedMark)))
	}
	return name
}

// tameName keeps what is harmless of a name in every file system and terminal;
// each other byte becomes an underscore.
func tameName(name string) string {
	out := []byte(clip(name, maxHeldText))
	for i, b := range out {
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '_' || b == '.') {
			out[i] = '_'
		}
	}
	return string(out)
}

// copy writes size bytes of a file into the tar. Holes, and what could not be
// read, are zeros; read counts what is real, why says what was not.
func (r *recovery) copy(file patientFile, size int64, holes bool) (read int64, why, err error) {
	r.hash.Reset()
	out := io.MultiWriter(r.tar, r.hash)
	for read < size {
		if holes {
			hole := r.hole(file, read, size)
			if err := writeZeros(r.s.ctx, out, hole); err != nil {
				return read, nil, err
			}
			if read += hole; read == size {
				break
			}
		}
		n, err := file.readAt(r.s.ctx, r.buf[:min(int64(len(r.buf)), size-read)], read)
		if r.s.ctx.Err() != nil {
			return read, nil, r.s.ctx.Err()
		}
		if err != nil {
			why = fmt.Errorf("cannot read at byte %d: %w", read, err)
			r.buf = make([]byte, len(r.buf)) // the old one may be a lost read's
		}
		if err != nil || n == 0 {
			break
		}
		if _, err := out.Write(r.buf[:n]); err != nil {
			return read, nil, err
		}
		read += int64(n)
	}
	return read, why, writeZeros(r.s.ctx, out, size-read)
}

// hole gives how many bytes from at on are a hole.
func (r *recovery) hole(file patientFile, at, size int64) int64 {
	const ask = 1 << 20 // there is no need to ask at each read
	if at%ask != 0 {
		return 0
	}
	data, err := file.dataAfter(r.s.ctx, at)
	if errors.Is(err, unix.ENXIO) { // nothing but a hole, or the end
		return size - at
	}
	if err != nil {
		return 0
	}
	return max(0, min(data, size)-at)
}

var zeros [64 << 10]byte

func writeZeros(ctx context.Context, w io.Writer, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		wrote, err := w.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= int64(wrote)
	}
	return nil
}
