package artifact

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"
)

// Bounds of text in a row, in bytes.
const (
	maxPath = 4096 // PATH_MAX of linux/limits.h
	maxWord = 256
	maxLine = 64 << 10 // of a line of /proc or /etc that is parsed
)

// sheet is a table that is being written.
type sheet struct {
	ctx   context.Context
	rec   *Record
	entry Entry
	hash  hash.Hash
	out   *bufio.Writer
	rows  io.Writer // out, the hash and the count
	row   bytes.Buffer
	json  *json.Encoder // into row
}

func newSheet(ctx context.Context, name string, w io.Writer, rec *Record) *sheet {
	s := &sheet{ctx: ctx, rec: rec, hash: sha256.New()}
	s.entry = Entry{Source: "table:" + name, Started: time.Now()}
	s.out = bufio.NewWriterSize(w, 64<<10)
	s.rows = io.MultiWriter(s.out, s.hash, (*counter)(&s.entry.Bytes))
	s.json = json.NewEncoder(&s.row)
	s.json.SetEscapeHTML(false)
	return s
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// put writes a row.
func (s *sheet) put(row any) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	s.row.Reset()
	if err := s.json.Encode(row); err != nil {
		return err
	}
	s.entry.Rows++
	_, err := s.rows.Write(s.rec.stamp(time.Now(), s.row.Bytes()))
	return err
}

// failed records that path could not be read.
func (s *sheet) failed(path string, err error) {
	now := time.Now()
	s.rec.Add(Entry{Source: s.entry.Source, Path: clip(path, maxPath), Started: now, Ended: now}.failed(err))
}

// note records something about path that is no failure.
func (s *sheet) note(path, note, detail string) {
	now := time.Now()
	s.rec.Add(Entry{Source: s.entry.Source, Path: clip(path, maxPath), Note: note, Detail: clip(detail, maxPath), Started: now, Ended: now})
}

// close ends the table, and records it.
func (s *sheet) close(err error) error {
	err = errors.Join(err, s.out.Flush())
	s.entry.Ended = time.Now()
	s.entry.SHA256 = hex.EncodeToString(s.hash.Sum(nil))
	if err == nil {
		s.rec.Add(s.entry)
		return nil
	}
	err = fmt.Errorf("cannot write %s: %w", s.entry.Source, err)
	s.entry.Error = clip(err.Error(), maxPath)
	s.entry.Errno = errnoName(err)
	s.rec.Add(s.entry)
	return err
}

// lines gives each line of a file to do, without its end, until do fails or
// the table's context ends. A line beyond maxLine is cut there, and recorded.
// A file that cannot be read is recorded; only do's and ctx's errors return.
func (s *sheet) lines(path string, do func(line []byte) error) error {
	f, err := openRegular(path)
	if err != nil {
		s.failed(path, err)
		return nil
	}
	defer f.Close()
	return s.linesOf(path, f, do)
}

func (s *sheet) linesOf(path string, r io.Reader, do func(line []byte) error) error {
	in := bufio.NewReaderSize(r, maxLine)
	for number := 1; ; number++ {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			s.note(path, NoteCut, fmt.Sprintf("line %d", number))
			line = append([]byte(nil), line...)
			err = skipLine(in)
		}
		if n := len(line); n > 0 && line[n-1] == '\n' {
			line = line[:n-1]
		} else if n == 0 && err != nil {
			if err != io.EOF {
				s.failed(path, err)
			}
			return nil
		}
		if err := errors.Join(s.ctx.Err(), do(line)); err != nil {
			return err
		}
	}
}

func skipLine(in *bufio.Reader) error {
	for {
		if _, err := in.ReadSlice('\n'); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// text reads a small file whole, without the line end that closes it. A file
// that is not there gives "" and no record.
func (s *sheet) text(path string, limit int) Text {
	data, err := readSmall(path, limit)
	if err != nil {
		if !gone(err) {
			s.failed(path, err)
		}
		return ""
	}
	if n := len(data); n > 0 && data[n-1] == '\n' {
		data = data[:n-1]
	}
	return Text(data)
}
