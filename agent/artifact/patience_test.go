package artifact

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestPatienceEnds(t *testing.T) {
	h := new(Host)
	release := make(chan struct{})
	hang := func(context.Context) int { <-release; return 1 }
	for range maxHung {
		if _, err := patiently(t.Context(), h, time.Millisecond, hang); !errors.Is(err, errHung) {
			t.Fatalf("got %v", err)
		}
	}
	if _, err := patiently(t.Context(), h, time.Second, hang); !errors.Is(err, errTooHung) {
		t.Errorf("beyond %d hung reads: %v", maxHung, err)
	}
	close(release)
	for h.hung.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	if got, err := patiently(t.Context(), h, time.Second, hang); got != 1 || err != nil {
		t.Errorf("after they returned: %d, %v", got, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	block := make(chan struct{})
	defer close(block)
	if _, err := patiently(ctx, h, time.Minute, func(context.Context) int { <-block; return 0 }); !errors.Is(err, why) {
		t.Errorf("after its context ended: %v", err)
	}
}

func TestLinesOfAnyLength(t *testing.T) {
	root := t.TempDir()
	long := make([]byte, 3*maxLine)
	for i := range long {
		long[i] = 'x'
	}
	place(t, root, map[string]string{"file": "a\n\n" + string(long) + "\nno end"})
	var rec Record
	s := newSheet(t.Context(), "test", discard{}, &rec)
	var got []int
	err := s.lines(root+"/file", func(line []byte) error { got = append(got, len(line)); return nil })
	if err != nil || len(got) != 4 || got[0] != 1 || got[1] != 0 || got[2] != maxLine || got[3] != 6 {
		t.Errorf("lines of %v bytes, %v", got, err)
	}
	if e := entries(t, &rec); len(e) != 1 || e[0].Note != NoteCut || e[0].Detail != "line 3" {
		t.Errorf("on record is %+v", e)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
