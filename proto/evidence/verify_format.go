package evidence

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Bounds of what a walk holds at a time.
const (
	maxWindow = 8 << 20  // of zstd; RFC 8878 asks this much of every decoder
	maxLine   = 16 << 20 // of JSONL
	walkBytes = 256 << 10
)

// tarEnd is how many zeros an archive ends with at least: two blocks.
// Source: POSIX.1-2017, pax, "ustar Interchange Format".
const tarEnd = 1024

// walk reads an item's format to its end. Its text says what it found.
func walk(o *object, item Item) (string, error) {
	parts, cut := joined(item)
	if parts == 0 {
		return "part 1 is not stored, so the others cannot be read as one stream; their hashes stand for them", nil
	}
	var want uint64
	for _, p := range item.Parts[:parts] {
		want = add(want, p.RawSize)
	}
	var src io.Reader = prefix{o, parts}
	if item.Compression == Zstd {
		decoder, err := newDecoder(src)
		if err != nil {
			return "", err
		}
		defer decoder.Close()
		src = decoder
	}
	raw := &bounded{src: src, max: want}
	detail, err := walkFormat(bufio.NewReaderSize(raw, walkBytes), item, cut)
	if err == nil && raw.n != want {
		err = fmt.Errorf("the stream has %d bytes, its parts say %d", raw.n, want)
	}
	if err == nil && parts < len(item.Parts) {
		detail += fmt.Sprintf("; read up to part %d, as the next one is not stored", item.Parts[parts-1].Number)
	}
	return detail, err
}

// joined is how many parts can be read as one stream, those up to the first
// one missing, and whether that stream may end anywhere.
func joined(item Item) (parts int, cut bool) {
	if item.Status == Whole {
		return len(item.Parts), false
	}
	for parts < len(item.Parts) && int(item.Parts[parts].Number) == parts+1 {
		parts++
	}
	return parts, true
}

// newDecoder gives a decoder that holds one window, whatever it reads.
func newDecoder(src io.Reader) (*zstd.Decoder, error) {
	decoder, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
	if err != nil {
		return nil, fmt.Errorf("cannot decompress: %w", err)
	}
	return decoder, nil
}

func walkFormat(src *bufio.Reader, item Item, cut bool) (string, error) {
	switch item.Format {
	case JSONL:
		return walkJSONL(src, cut)
	case Tar:
		return walkTar(src, cut)
	case Text:
		return walkText(src)
	}
	_, err := io.Copy(io.Discard, src)
	return "", errors.Join(fmt.Errorf("format %.40q is unknown", string(item.Format)), err)
}

// walkJSONL reads line by line; each must be an object.
func walkJSONL(src io.Reader, cut bool) (string, error) {
	torn := false // the last line has no end
	lines := bufio.NewScanner(src)
	lines.Buffer(make([]byte, 0, walkBytes), maxLine)
	lines.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			return i + 1, data[:i], nil
		}
		torn = atEOF && len(data) > 0
		if torn {
			return len(data), data, nil
		}
		return 0, nil, nil
	})
	n := 0
	for lines.Scan() {
		n++
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) > 0 && line[0] == '{' && json.Valid(line) {
			continue
		}
		if lines.Err() != nil {
			break // why the line is torn
		}
		if torn && cut {
			return fmt.Sprintf("%d lines, and one that is cut", n-1), nil
		}
		return "", fmt.Errorf("line %d is no JSON object", n)
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("after line %d: %w", n, err)
	}
	return fmt.Sprintf("%d lines, each a JSON object", n), nil
}

// walkText counts lines. Any bytes are text.
func walkText(src *bufio.Reader) (string, error) {
	n := 0
	for {
		_, err := src.ReadSlice('\n')
		switch {
		case err == nil:
			n++
		case errors.Is(err, io.EOF):
			return fmt.Sprintf("%d lines", n), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", err
		}
	}
}

// walkTar goes from header to header. It asks no entry for its bytes: what a
// sparse entry claims to hold has no bound.
func walkTar(src io.Reader, cut bool) (string, error) {
	end := &ending{src: src}
	archive, n := tar.NewReader(end), 0
	for {
		_, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, io.ErrUnexpectedEOF) && cut {
			return fmt.Sprintf("%d entries, the last one cut", n), nil
		}
		if err != nil {
			return "", fmt.Errorf("after entry %d: %w", n, err)
		}
		n++
	}
	if err := onlyZeros(end); err != nil {
		return "", err
	}
	if end.zeros >= tarEnd {
		return fmt.Sprintf("%d entries walked to the end", n), nil
	}
	if cut {
		return fmt.Sprintf("%d entries, and no end", n), nil
	}
	return "", fmt.Errorf("after entry %d: the archive is cut, its end of %d zeros is not there", n, tarEnd)
}

// ending counts the zeros that a stream ends with. An archive that is cut
// between two entries looks to a tar reader like one that has ended.
type ending struct {
	src   io.Reader
	zeros uint64
}

// Read implements io.Reader.
func (e *ending) Read(p []byte) (int, error) {
	n, err := e.src.Read(p)
	if kept := len(bytes.TrimRight(p[:n], "\x00")); kept > 0 {
		e.zeros = uint64(n - kept)
	} else {
		e.zeros += uint64(n)
	}
	return n, err
}

// onlyZeros reads what follows an archive's end: tar fills it with zeros.
func onlyZeros(src io.Reader) error {
	b := make([]byte, 32<<10)
	for {
		n, err := src.Read(b)
		if len(bytes.Trim(b[:n], "\x00")) > 0 {
			return errors.New("there are bytes after the archive's end")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after the archive's end: %w", err)
		}
	}
}

// bounded counts what is read, and refuses more than max: bytes that
// decompress without end, end here.
type bounded struct {
	src    io.Reader
	n, max uint64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.src.Read(p)
	b.n = add(b.n, uint64(n))
	if b.n > b.max {
		return 0, fmt.Errorf("the stream has more than the %d bytes that its parts say", b.max)
	}
	return n, err
}
