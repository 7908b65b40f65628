package session

import (
	"math"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	const mib = 1 << 20
	tests := []struct {
		name         string
		at           []int    // seconds
		read         []uint64 // at these times
		paused       []int    // at these times
		want, stored uint64   // at the last; an eighth of what is read is stored
	}{
		{"a first glance", []int{0}, []uint64{0}, nil, 0, 0},
		{"steadily", []int{0, 1, 2}, []uint64{0, 8 * mib, 16 * mib}, nil, 8 * mib, mib},
		{"what was long ago does not count", []int{0, 1, 2, 3, 4, 5, 6, 7}, []uint64{0, 800 * mib, 800 * mib, 808 * mib, 816 * mib, 824 * mib, 832 * mib, 840 * mib}, nil, 8 * mib, mib},
		{"it stands still", []int{0, 1, 2, 3, 4, 5, 6}, []uint64{0, 8 * mib, 8 * mib, 8 * mib, 8 * mib, 8 * mib, 8 * mib}, nil, 0, 0},
		{"nobody looked for a minute", []int{0, 60}, []uint64{0, 480 * mib}, nil, 8 * mib, mib},
		{"paused", []int{0, 1, 2}, []uint64{0, 8 * mib, 9 * mib}, []int{2}, 0, 0},
		{"a pause does not count", []int{0, 1, 2, 100, 101}, []uint64{0, 8 * mib, 8 * mib, 8 * mib, 16 * mib}, []int{2, 100}, 8 * mib, mib},
		{"a clock that stands still", []int{1, 1}, []uint64{0, 8 * mib}, nil, 0, 0},
		{"a count that went back", []int{0, 1}, []uint64{8 * mib, 0}, nil, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var p pace
			var read, stored uint64
			for i, at := range tt.at {
				paused := false
				for _, s := range tt.paused {
					paused = paused || s == at
				}
				read, stored = p.rates(glance{time.Unix(int64(at), 0), tt.read[i], tt.read[i] / 8}, paused)
			}
			if read != tt.want || stored != tt.stored {
				t.Errorf("%d and %d bytes a second, want %d and %d", read, stored, tt.want, tt.stored)
			}
			if len(p.seen) > 7 {
				t.Errorf("%d glances are kept", len(p.seen))
			}
		})
	}
}

func TestLeft(t *testing.T) {
	for _, tt := range []struct {
		read, total, rate uint64
		want              time.Duration
	}{
		{0, 100, 10, 10 * time.Second},
		{95, 100, 10, 500 * time.Millisecond},
		{0, 100, 0, 0},
		{0, 0, 10, 0},
		{100, 100, 10, 0},
		{101, 100, 10, 0},
		{0, math.MaxUint64, 1, 0},
	} {
		if got := left(tt.read, tt.total, tt.rate); got != tt.want {
			t.Errorf("left(%d, %d, %d) = %v, want %v", tt.read, tt.total, tt.rate, got, tt.want)
		}
	}
}
