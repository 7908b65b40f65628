package artifact

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/maphash"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The PAX records of a member of the tar, beside the standard ones. Times are
// seconds with nanoseconds, as the standard's.
const (
	paxBirth = "QUICKLIME.btime" // when the file was made, where its file system tells
	paxInode = "QUICKLIME.inode"
	paxDev   = "QUICKLIME.device" // major:minor
	paxSize  = "QUICKLIME.size"   // the file's size, where the member is cut
	paxLinks = "QUICKLIME.nlink"  // names that the file has on its file system
	paxAttrs = "QUICKLIME.attributes"
	paxNote  = "QUICKLIME.note" // what was known of the file before it was read, as in the record
	uacLog   = "uac.log"        // the first member, by which tools know the layout
	tarRoot  = "[root]"         // folder of the tar that stands for the host's /
	tarBoxes = "containers"     // and that with a folder for each container's /
)

// WriteFiles reads the files of Definitions, then those of more, and writes
// them to w as one tar stream in PAX format, uncompressed. Each lies at [root] and its path on the
// host, with owner, mode, and its times to the nanosecond; a link is itself,
// never what it points to. Its SHA-256, known only after its bytes, is in the
// record. Extended attributes and ACLs are PAX records SCHILY.xattr.NAME. Of
// several names of one file the first has its bytes and the others are hard
// links; holes stay holes. Files of containers follow, as containers/ID and their
// path within.
//
// What could not be read is recorded and does not end it; an error means that
// w failed or ctx ended, and that the stream is not whole.
func (h *Host) WriteFiles(ctx context.Context, w io.Writer, rec *Record, more ...Definition) error {
	return h.writeFiles(ctx, w, rec, append(Definitions(), more...))
}

func (h *Host) writeFiles(ctx context.Context, w io.Writer, rec *Record, definitions []Definition) error {
	defer idly()()
	c := &collection{
		ctx: ctx, rec: rec, out: w, tar: tar.NewWriter(w), links: map[[2]uint64]string{}, limits: h.Limits.filled(),
		buf: make([]byte, 256<<10), hash: sha256.New(),
	}
	c.left = c.limits.TotalBytes
	root, err := unix.Open(h.path(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open the host's root %s: %w", h.path(), err)
	}
	defer unix.Close(root)
	if err := c.begin(h, definitions); err != nil {
		return err
	}
	walker := c.walkerOf(root, "")
	if err := c.prepare(walker, h.path("proc/self/mountinfo")); err != nil {
		return err
	}
	if err := c.collect(h, walker, definitions); err != nil {
		return err
	}
	if err := c.containers(h, root, definitions); err != nil {
		return err
	}
	if err := c.tar.Close(); err != nil {
		return fmt.Errorf("cannot end the tar: %w", err)
	}
	return nil
}

// walkerOf gives a walker below the root of the host, or of a container whose
// folder in the tar is place.
func (c *collection) walkerOf(root int, place string) *walker {
	c.place = place
	return &walker{ctx: c.ctx, rec: c.rec, root: root, place: place, take: c.take, seen: map[uint64]struct{}{}, seed: maphash.MakeSeed()}
}

// collect takes what definitions say.
func (c *collection) collect(h *Host, walker *walker, definitions []Definition) error {
	for i := range definitions {
		def := &definitions[i]
		// No artifact takes more than half of what is left, so that none,
		// however large someone made it, starves those after it.
		c.defLeft = c.left / 2
		if def.TotalBytes > 0 {
			c.defLeft = min(c.defLeft, def.TotalBytes)
		}
		if err := walker.walk(def); err != nil {
			return fmt.Errorf("cannot collect %s: %w", def.Name, err)
		}
		if walker.place == "" {
			if err := c.commands(h, def); err != nil {
				return fmt.Errorf("cannot collect %s: %w", def.Name, err)
			}
		}
		h.log().Debug("artifact collected", "name", def.Name, "place", walker.place, "matches", walker.matched)
	}
	return nil
}

// collection writes files into the tar.
type collection struct {
	ctx    context.Context
	rec    *Record
	out    io.Writer // that tar writes to
	tar    *tar.Writer
	place  string               // as the walker's
	links  map[[2]uint64]string // the first name in the tar of each file that has several, by device and inode
	limits Limits
	users  map[uint32]string
	groups map[uint32]string

	left, defLeft int64 // bytes that may still be taken: in all, of this definition
	buf           []byte
	hash          hash.Hash
}

// maxLinks bounds the files of several names that are remembered; those beyond
// are stored once for each name.
const maxLinks = 64 << 10

// begin writes the log that UAC's layout begins with.
func (c *collection) begin(h *Host, definitions []Definition) error {
	now := time.Now().UTC()
	log := fmt.Sprintf("%s INF quicklime-agent %s, case %q, instance %q: files of %d artifacts, %d bytes at most\n",
		now.Format("2006-01-02 15:04:05 -0700"), h.Version, c.rec.Case, c.rec.Instance, len(definitions), c.left)
	if err := c.tar.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: uacLog, Mode: 0o644, Size: int64(len(log)), ModTime: now}); err != nil {
		return fmt.Errorf("cannot begin the tar: %w", err)
	}
	if _, err := io.WriteString(c.tar, log); err != nil {
		return fmt.Errorf("cannot begin the tar: %w", err)
	}
	return nil
}

// prepare learns the owners' names, the homes and the file systems of the
// walker's root. Files there are opened within it alone.
func (c *collection) prepare(w *walker, mountinfo string) error {
	s := newSheet(c.ctx, "prepare", io.Discard, c.rec)
	s.entry.Source = "files"
	if err := w.refuseMounts(mountinfo, s); err != nil {
		return err
	}
	c.users, c.groups = map[uint32]string{}, map[uint32]string{}
	homes := []string{"/root"}
	t := &tree{s, w}
	err1 := t.lines("/etc/passwd", func(line []byte) error {
		if u, ok := parsePasswd(line); ok && len(c.users) < maxAccounts {
			if _, known := c.users[u.UID]; !known {
				c.users[u.UID] = ownerName(u.Name)
			}
			homes = append(homes, string(u.Home))
		}
		return nil
	})
	err2 := t.lines("/etc/group", func(line []byte) error {
		if g, ok := parseGroup(line); ok && len(c.groups) < maxAccounts {
			if _, known := c.groups[g.GID]; !known {
				c.groups[g.GID] = ownerName(g.Name)
			}
		}
		return nil
	})
	w.homes = w.findHomes(s, homes)
	return errors.Join(err1, err2)
}

// ownerName is a name as tar can hold it: without NULs.
func ownerName(name Text) string { return strings.ReplaceAll(string(name), "\x00", "") }

// take writes one node. It fails only when the tar does, or the context ends.
func (c *collection) take(def *Definition, n *node, at string) error {
	e := Entry{Source: def.Name, Path: clip(c.place+at, maxPath), Started: time.Now()}
	header, err := c.header(n, at)
	if err != nil {
		c.rec.Add(xattrEntry(e, err))
	}
	err = nil
	switch n.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = c.file(def, n, at, header, &e)
	case unix.S_IFDIR:
		header.Typeflag = tar.TypeDir
		header.Name += "/"
		err = c.tar.WriteHeader(header)
	case unix.S_IFLNK:
		target, linkErr := n.target()
		if linkErr != nil {
			e = e.failed(linkErr)
			break
		}
		header.Typeflag, header.Linkname = tar.TypeSymlink, target
		err = c.tar.WriteHeader(header)
	default:
		e.Note, e.Detail = NoteUnread, Text(n.kindName())
	}
	e.Ended = time.Now()
	if err != nil {
		e = e.failed(err)
	}
	c.rec.Add(e)
	return err
}

// xattrEntry records that not all of a file's extended attributes were taken;
// the file itself is, and has an entry of its own.
func xattrEntry(e Entry, err error) Entry {
	e.Ended = time.Now()
	if err == errXattrs {
		e.Note, e.Detail = NoteCut, Text(err.Error())
		return e
	}
	return e.failed(err)
}

// root is the folder of the tar that stands for the / that is walked.
func (c *collection) root() string {
	if c.place == "" {
		return tarRoot
	}
	return c.place
}

// header fails when the extended attributes could not be had; it is good
// without them.
func (c *collection) header(n *node, at string) (*tar.Header, error) {
	st := &n.stat
	h := &tar.Header{
		Format: tar.FormatPAX, Name: c.root() + at, Mode: int64(st.Mode & 0o7777),
		Uid: int(st.Uid), Gid: int(st.Gid), Uname: c.users[st.Uid], Gname: c.groups[st.Gid],
		ModTime: timeOf(st.Mtime), AccessTime: timeOf(st.Atime), ChangeTime: timeOf(st.Ctime),
		PAXRecords: map[string]string{paxInode: fmt.Sprint(st.Ino), paxDev: device(n.dev()), paxLinks: fmt.Sprint(n.stat.Nlink)},
	}
	if names := n.attributes(); names != "" {
		h.PAXRecords[paxAttrs] = names
	}
	if st.Mask&unix.STATX_BTIME != 0 && st.Btime.Sec != 0 { // some say 0 for unknown
		h.PAXRecords[paxBirth] = fmt.Sprintf("%d.%09d", st.Btime.Sec, st.Btime.Nsec)
	}
	return h, n.xattrs(h.PAXRecords)
}

// file writes a regular file, with as many bytes as it had when first seen
// and the limits allow. If it cannot give them all, zeros take their place, as
// the header is already written.
func (c *collection) file(def *Definition, n *node, at string, header *tar.Header, e *Entry) error {
	fd, err := n.openFile()
	if err != nil {
		*e = e.failed(err)
		return nil
	}
	defer unix.Close(fd)
	if def.Public && c.isPrivateKey(fd, path.Base(at)) {
		e.Size, e.Note = int64(n.stat.Size), NotePrivateKey
		return nil
	}
	if e.Size = int64(min(n.stat.Size, 1<<62)); c.linked(n, at, header) {
		e.Note, e.Detail = NoteHardLink, clip(strings.TrimPrefix(header.Linkname, tarRoot), maxPath)
		return c.tar.WriteHeader(header)
	}
	extents := []extent{{0, e.Size}}
	if n.holes() {
		extents = extentsOf(fd, e.Size)
	}
	data, size := stored(extents), e.Size
	if room, limit := c.room(def, n, data); limit != "" {
		e.Note, e.Detail = NoteCut, Text(limit)
		header.PAXRecords[paxSize] = fmt.Sprint(e.Size)
		if room == 0 {
			return nil
		}
		extents = firstBytes(extents, room)
		last := extents[len(extents)-1]
		data, size = room, last.offset+last.size
	}
	if note := changed(fd, n, false); note != "" {
		header.PAXRecords[paxNote] = note // it changes so fast that it did already
	}
	if err := c.beginFile(n, header, extents, size, e); err != nil {
		return err
	}
	c.left -= data
	c.defLeft -= data
	read, readErr, err := c.copy(fd, extents)
	if err != nil {
		return err
	}
	e.Bytes, e.Padded = data, data-read
	e.SHA256 = hex.EncodeToString(c.hash.Sum(nil))
	if readErr != nil {
		*e = e.failed(readErr)
	}
	e.Note = addNote(e.Note, changed(fd, n, readErr == nil && read < data))
	return nil
}

// linked makes the header a hard link where the file is in the tar already.
func (c *collection) linked(n *node, at string, header *tar.Header) bool {
	first, known := c.links[n.id()]
	if n.stat.Nlink < 2 || !known {
		return false
	}
	header.Typeflag, header.Linkname = tar.TypeLink, first
	return true
}

// beginFile writes the header of a regular file, with a map where it has holes.
func (c *collection) beginFile(n *node, header *tar.Header, extents []extent, size int64, e *Entry) error {
	var err error
	if data := stored(extents); data < size && data < ustarMost-maxExtents*40 {
		e.Note = addNote(e.Note, NoteSparse)
		err = c.sparseHeader(header, extents, size)
	} else {
		header.Typeflag, header.Size = tar.TypeReg, data
		err = c.tar.WriteHeader(header)
	}
	if err == nil && n.stat.Nlink > 1 && len(c.links) < maxLinks {
		c.links[n.id()] = header.Name
	}
	return err
}

// room says how many of a file's bytes of data may be taken, and which limit,
// if any, is in the way of the rest.
func (c *collection) room(def *Definition, n *node, data int64) (size int64, limit string) {
	size = data
	perFile := c.limits.FileBytes
	if def.FileBytes > 0 {
		perFile = min(perFile, def.FileBytes)
	}
	for _, l := range []struct {
		bytes int64
		name  string
		holds bool
	}{
		{perFile, "bytes of one file", true},
		{c.limits.SparseBytes, "bytes of a sparse file", n.sparse() && data == int64(n.stat.Size)},
		{c.defLeft, "bytes of this artifact", true},
		{c.left, "bytes of all files", true},
	} {
		if l.holds && size > l.bytes {
			size, limit = l.bytes, l.name
		}
	}
	return size, limit
}

// copy writes extents of a file into the tar, with zeros for what it could
// not read. It gives the number of bytes that it read, why no more, and
// whether the tar failed.
func (c *collection) copy(fd int, extents []extent) (read int64, readErr, err error) {
	c.hash.Reset()
	for _, x := range extents {
		n, whyNot, err := c.copyExtent(fd, x)
		read += n
		if readErr == nil {
			readErr = whyNot
		}
		if err != nil {
			return read, readErr, err
		}
	}
	return read, readErr, nil
}

func (c *collection) copyExtent(fd int, x extent) (read int64, readErr, err error) {
	out := io.MultiWriter(c.tar, c.hash)
	for read < x.size {
		if err := c.ctx.Err(); err != nil {
			return read, nil, err
		}
		n, err := unix.Pread(fd, c.buf[:min(int64(len(c.buf)), x.size-read)], x.offset+read)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			readErr = fmt.Errorf("cannot read at byte %d: %w", x.offset+read, err)
		}
		if err != nil || n == 0 {
			break
		}
		if _, err := out.Write(c.buf[:n]); err != nil {
			return read, nil, err
		}
		read += int64(n)
	}
	if read < x.size {
		clear(c.buf)
	}
	for at := read; at < x.size; {
		if err := c.ctx.Err(); err != nil {
			return read, nil, err
		}
		n, err := out.Write(c.buf[:min(int64(len(c.buf)), x.size-at)])
		if err != nil {
			return read, nil, err
		}
		at += int64(n)
	}
	return read, readErr, nil
}

// changed says how a file changed since it was first seen.
func changed(fd int, n *node, short bool) string {
	var now unix.Stat_t
	err := unix.Fstat(fd, &now)
	switch {
	case err == nil && now.Size > int64(n.stat.Size):
		return NoteGrew
	case short || (err == nil && now.Size < int64(n.stat.Size)):
		return NoteShrank
	case err == nil && (now.Mtim.Sec != n.stat.Mtime.Sec || now.Mtim.Nsec != int64(n.stat.Mtime.Nsec)):
		return NoteChanged
	}
	return ""
}

func addNote(notes, note string) string {
	if notes == "" || note == "" {
		return notes + note
	}
	return notes + "," + note
}

// isPrivateKey looks into the start of a file. Files that let someone in, or
// are public by their use, are taken whatever they hold, so that a line in
// them cannot keep them out of the evidence.
func (c *collection) isPrivateKey(fd int, name string) bool {
	for _, public := range []string{"authorized_keys", "known_hosts", "config", "rc", "environment", "sshd_config", "ssh_config"} {
		if strings.HasPrefix(name, public) {
			return false
		}
	}
	n, err := unix.Pread(fd, c.buf[:4096], 0)
	if err != nil {
		return false
	}
	head := c.buf[:n]
	return (bytes.Contains(head, []byte("-----BEGIN ")) && bytes.Contains(head, []byte("PRIVATE KEY-----"))) ||
		bytes.Contains(head, []byte("SSH PRIVATE KEY FILE FORMAT")) || bytes.HasPrefix(head, []byte("PuTTY-User-Key-File-"))
}
