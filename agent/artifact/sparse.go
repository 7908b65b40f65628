package artifact

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// extent is a run of a file's bytes that are stored.
type extent struct{ offset, size int64 }

// Bounds of a sparse file's map. archive/tar reads maps of up to 1 MiB, and an
// extent takes 40 bytes at most.
const (
	maxExtents = 16 << 10
	leastHole  = 64 << 10 // shorter holes are stored as zeros
)

// extentsOf lists where the first size bytes of a file hold data; the rest are
// holes. A file system that does not tell gives one extent, as does a file
// without holes worth it. Beyond maxExtents the last runs to the end, and is
// zeros where there are holes. The file's offset moves. Source: lseek(2).
func extentsOf(fd int, size int64) []extent {
	var out []extent
	for at := int64(0); at < size; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO || err == nil && start >= size {
			break // nothing but a hole is left
		}
		if err != nil {
			return []extent{{0, size}}
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil || end <= start {
			return []extent{{0, size}}
		}
		end = min(end, size)
		last := len(out) - 1
		switch {
		case len(out) == 0 && start < leastHole:
			out = append(out, extent{0, end})
		case len(out) > 0 && start-(out[last].offset+out[last].size) < leastHole:
			out[last].size = end - out[last].offset
		case len(out) == maxExtents:
			out[last].size = size - out[last].offset
			return out
		default:
			out = append(out, extent{start, end - start})
		}
		at = end
	}
	return out
}

// stored is how many bytes extents hold.
func stored(extents []extent) (n int64) {
	for _, e := range extents {
		n += e.size
	}
	return n
}

// firstBytes gives the extents that hold the first n bytes of data.
func firstBytes(extents []extent, n int64) []extent {
	var out []extent
	for _, e := range extents {
		if e.size = min(e.size, n); e.size == 0 {
			break
		}
		out = append(out, e)
		n -= e.size
	}
	return out
}

// sparseMap writes extents in front of their data: their number, then offset
// and size of each, a line each, and NULs up to a whole block. A file that ends
// in a hole has an empty extent at its end, or GNU tar makes it too short.
// Source: GNU tar manual, "PAX Format, Version 1.0".
func sparseMap(extents []extent, size int64) []byte {
	if n := len(extents); n == 0 || extents[n-1].offset+extents[n-1].size < size {
		extents = append(slices.Clip(extents), extent{size, 0})
	}
	b := fmt.Appendf(nil, "%d\n", len(extents))
	for _, e := range extents {
		b = fmt.Appendf(b, "%d\n%d\n", e.offset, e.size)
	}
	return append(b, make([]byte, -len(b)&(blockBytes-1))...)
}

const blockBytes = 512 // of a tar

// ustarMost is the most that a size or time in an old header can hold.
const ustarMost = 1<<33 - 1

// sparseHeader begins a sparse file of so many bytes in all, as GNU tar does:
// a regular member, with a map before its data, whose true name and size are
// in PAX records. archive/tar reads such members and refuses to write them,
// so the records are written here. The data of extents must follow.
func (c *collection) sparseHeader(h *tar.Header, extents []extent, size int64) error {
	if err := c.tar.Flush(); err != nil {
		return err
	}
	layout := sparseMap(extents, size)
	records := sparseRecords(h, size)
	records["size"] = fmt.Sprint(int64(len(layout)) + stored(extents))
	extended, err := extendedHeader(records)
	if err != nil {
		return err
	}
	if _, err := c.out.Write(extended); err != nil {
		return err
	}
	// This is one block; a tar program that knows nothing of sparse files
	// gives the map and the data under this name.
	plain := tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: "GNUSparseFile.0/" + h.PAXRecords[paxInode], Mode: h.Mode,
		Size: int64(len(layout)) + stored(extents), ModTime: time.Unix(min(max(h.ModTime.Unix(), 0), ustarMost), 0)}
	if err := c.tar.WriteHeader(&plain); err != nil {
		return err
	}
	_, err = c.tar.Write(layout)
	return err
}

// sparseRecords gives all that is in a header, as PAX records.
func sparseRecords(h *tar.Header, size int64) map[string]string {
	records := maps.Clone(h.PAXRecords)
	maps.Copy(records, map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": h.Name, "GNU.sparse.realsize": fmt.Sprint(size),
		"mtime": paxTime(h.ModTime), "atime": paxTime(h.AccessTime), "ctime": paxTime(h.ChangeTime),
		"uid": fmt.Sprint(h.Uid), "gid": fmt.Sprint(h.Gid),
	})
	for key, name := range map[string]string{"uname": h.Uname, "gname": h.Gname} {
		if name != "" {
			records[key] = name
		}
	}
	return records
}

// paxTime writes seconds with nanoseconds.
func paxTime(t time.Time) string {
	return string(appendBodyTime(nil, unix.StatxTimestamp{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}))
}

// extendedHeader gives a member of type x that holds the records, for the
// member that follows it. Source: pax(1), "pax Extended Header".
func extendedHeader(records map[string]string) ([]byte, error) {
	var body []byte
	for _, key := range slices.Sorted(maps.Keys(records)) {
		body = appendRecord(body, key, records[key])
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: "PaxHeaders.0/sparse", Mode: 0o600, Size: int64(len(body))}); err != nil {
		return nil, err
	}
	if _, err := io.Copy(w, bytes.NewReader(body)); err != nil {
		return nil, err
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	block := out.Bytes()[:blockBytes]
	block[156] = tar.TypeXHeader // which archive/tar writes for its own alone
	sum := block[148:156]
	copy(sum, "        ") // the sum is of a header whose sum is blank
	total := 0
	for _, b := range block {
		total += int(b)
	}
	copy(sum, fmt.Sprintf("%06o\x00 ", total))
	return out.Bytes(), nil
}

// appendRecord writes LENGTH KEY=VALUE and a line end; LENGTH counts itself.
func appendRecord(b []byte, key, value string) []byte {
	rest := len(key) + len(value) + 3
	length := rest + len(strconv.Itoa(rest))
	length = rest + len(strconv.Itoa(length))
	return fmt.Appendf(b, "%d %s=%s\n", length, key, value)
}
