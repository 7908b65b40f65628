package locker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// streamPart is how many bytes of a stream are in memory, and in a part.
const streamPart = 8 << 20

// farewell bounds how long an upload that failed is given up.
const farewell = 30 * time.Second

// PutStream stores what a reader gives until its end, 80 GB at most, as an
// object of parts. On a nil error the bucket holds exactly that. Where the
// reader fails nothing is stored.
func (l *Locker) PutStream(ctx context.Context, key string, r io.Reader) (Object, error) {
	id, err := l.Begin(ctx, key)
	if err != nil {
		return Object{}, err
	}
	parts, err := l.putParts(ctx, key, id, r)
	if err == nil {
		var object Object
		if object, err = l.Complete(ctx, key, id, parts); err == nil {
			return object, nil
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	return Object{}, errors.Join(err, l.Abort(ctx, key, id))
}

func (l *Locker) putParts(ctx context.Context, key, id string, r io.Reader) (parts []evidence.Part, err error) {
	buffer := make([]byte, streamPart)
	for number := int32(1); ; number++ {
		n, last, err := fill(buffer, r)
		if err != nil {
			return nil, fmt.Errorf("cannot read what is to be stored as %s: %w", key, err)
		}
		if n == 0 && number > 1 {
			return parts, nil
		}
		stored, err := l.PutPart(ctx, key, id, number, buffer[:n])
		if err != nil {
			return nil, err
		}
		parts = append(parts, evidence.Part{Number: stored.Number, Size: stored.Size, SHA256: stored.Digest, ETag: stored.ETag})
		if last {
			return parts, nil
		}
	}
}

// fill fills a buffer, the last one as far as there is something. Only the end
// that the reader itself calls so is one.
func fill(buffer []byte, r io.Reader) (n int, last bool, err error) {
	for n < len(buffer) && err == nil {
		var more int
		more, err = r.Read(buffer[n:])
		n += more
	}
	if errors.Is(err, io.EOF) {
		return n, true, nil
	}
	return n, false, err
}
