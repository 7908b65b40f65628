package export

import (
	"errors"
	"fmt"
	"io"
	"syscall"
)

// stream is a sink that cannot seek: holes are written as zeros.
type stream struct {
	w     io.Writer
	at    uint64
	zeros []byte
}

func (s *stream) writeAt(at uint64, p []byte) error {
	if at < s.at {
		return fmt.Errorf("cannot write at %d of a stream that is at %d", at, s.at)
	}
	if err := s.end(at); err != nil {
		return err
	}
	return s.write(p)
}

// end writes zeros up to an offset.
func (s *stream) end(size uint64) error {
	if s.zeros == nil {
		s.zeros = make([]byte, pieceBytes)
	}
	for s.at < size {
		if err := s.write(s.zeros[:min(size-s.at, pieceBytes)]); err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) write(p []byte) error {
	n, err := s.w.Write(p)
	s.at += uint64(n)
	switch {
	case errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%w after %d bytes", ErrReader, s.at)
	case err != nil:
		return fmt.Errorf("cannot write after %d bytes: %w", s.at, err)
	}
	return nil
}
