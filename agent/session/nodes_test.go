package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestAnAddressIsHostAndPort(t *testing.T) {
	for _, bad := range [][]string{nil, {""}, {"collector.example"}, {":8443"}, {"collector.example:"}, {"a:1", "b"}, {"::1:8443"}} {
		if s, err := New(Config{Collectors: bad}); err == nil || s != nil {
			t.Errorf("%q was taken", bad)
		}
	}
	for _, good := range [][]string{{"collector.example:8443"}, {"192.0.2.1:8443", "[2001:db8::1]:8443"}} {
		if _, err := New(Config{Collectors: good}); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

func TestANameMayStandForSeveralNodes(t *testing.T) {
	lookup := func(_ context.Context, host string) ([]string, error) {
		switch host {
		case "collector.example":
			return []string{"192.0.2.1", "192.0.2.2", "2001:db8::3"}, nil
		case "gone.example":
			return nil, errors.New("no such host")
		}
		return []string{host}, nil
	}
	got := resolve(t.Context(), lookup, []string{"collector.example:8443", "192.0.2.2:8443", "gone.example:1"})
	want := []node{
		{"192.0.2.1:8443", "collector.example:8443"}, {"192.0.2.2:8443", "collector.example:8443"},
		{"[2001:db8::3]:8443", "collector.example:8443"}, {"gone.example:1", "gone.example:1"},
	}
	slices.SortFunc(got, func(a, b node) int { return slices.Index(want, a) - slices.Index(want, b) })
	if !slices.Equal(got, want) {
		t.Errorf("nodes %v, want %v", got, want)
	}
}

// TestAgentsSpreadOverTheNodes: the order is another one each time.
func TestAgentsSpreadOverTheNodes(t *testing.T) {
	literal := func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	first := map[string]int{}
	for range 300 {
		first[resolve(t.Context(), literal, []string{"a:1", "b:1", "c:1"})[0].addr]++
	}
	for _, addr := range []string{"a:1", "b:1", "c:1"} {
		if first[addr] < 30 { // 100 are expected, and this is 8 deviations less
			t.Errorf("%s came first %d times of 300", addr, first[addr])
		}
	}
}

var errDown = errors.New("down")

func TestEachNodeIsTriedBeforeTheBackoffGrows(t *testing.T) {
	nodes := []node{{addr: "a"}, {addr: "b"}, {addr: "c"}}
	var s search
	most := firstBackoff
	for round := range 20 {
		s.begin(slices.Clone(nodes))
		var tried []node
		for over := false; !over; {
			n := s.next()
			tried = append(tried, n)
			var pause time.Duration
			if pause, over = s.failed(n, errDown, time.Millisecond); !over && pause >= nextNode || over && pause >= most {
				t.Fatalf("round %d, node %d: pause %v", round, len(tried), pause)
			}
		}
		if !slices.Equal(tried, nodes) {
			t.Fatalf("round %d tried %v", round, tried)
		}
		most = min(2*most, lastBackoff)
		if s.wait != most {
			t.Fatalf("round %d: the backoff is %v, want %v", round, s.wait, most)
		}
	}
}

func TestWhatAStreamsEndMeansForTheSearch(t *testing.T) {
	busy := func(code codes.Code, d time.Duration) error {
		s, err := status.New(code, "too many agents").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
		if err != nil {
			t.Fatal(err)
		}
		return s.Err()
	}
	tests := []struct {
		name        string
		err         error
		lasted      time.Duration
		least, most time.Duration // of the pause
		next        time.Duration // the longest pause after the next round
	}{
		{"a node that is down", errDown, 0, 0, 8 * time.Second, 16 * time.Second},
		{"a node that was good for long", errDown, steadyAfter, 0, firstBackoff, 2 * firstBackoff},
		{"a node that serves no calls", fmt.Errorf("%w: why", errUseless), 40 * time.Second, 0, firstBackoff, 2 * firstBackoff},
		{"a node that is too busy", busy(codes.ResourceExhausted, 30*time.Second), 0, 30 * time.Second, 38 * time.Second, 16 * time.Second},
		{"a node that closes before a word", fmt.Errorf("%w: why", errBusy), 0, 0, 8 * time.Second, 16 * time.Second},
		{"one that asks for a year", busy(codes.Unavailable, 365*24*time.Hour), 0, longestAsk, longestAsk + 8*time.Second, 16 * time.Second},
		{"one that asks for less than nothing", busy(codes.Unavailable, -time.Hour), 0, 0, 8 * time.Second, 16 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := search{wait: 8 * time.Second}
			s.begin([]node{{addr: "a"}})
			pause, over := s.failed(s.next(), tt.err, tt.lasted)
			if !over || pause < tt.least || pause >= tt.most || s.wait != tt.next {
				t.Errorf("pause %v, want %v to %v; then %v at most, want %v", pause, tt.least, tt.most, s.wait, tt.next)
			}
		})
	}
}

// TestTheLongestWishHoldsAfterARound: every node is tried, though the first
// asks for a pause, which is then kept.
func TestTheLongestWishHoldsAfterARound(t *testing.T) {
	busy, err := status.New(codes.ResourceExhausted, "busy").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	var s search
	s.begin([]node{{addr: "a"}, {addr: "b"}})
	if pause, over := s.failed(s.next(), busy.Err(), 0); over || pause >= nextNode {
		t.Errorf("pause %v, over %v, while another node is known", pause, over)
	}
	if pause, over := s.failed(s.next(), errDown, 0); !over || pause < time.Minute {
		t.Errorf("pause %v, over %v, want a minute at least", pause, over)
	}
	s.begin([]node{{addr: "a"}})
	if pause, _ := s.failed(s.next(), errDown, 0); pause >= 2*firstBackoff {
		t.Errorf("pause %v: the wish outlived its round", pause)
	}
}

func TestTheNodeThatWasLostIsTriedLast(t *testing.T) {
	a, b := node{addr: "a"}, node{addr: "b"}
	var s search
	s.begin([]node{a, b})
	if _, over := s.failed(s.next(), errDown, time.Hour); !over {
		t.Error("after an hour the known nodes were not looked up again")
	}
	s.begin([]node{a, b})
	if n := s.next(); n != b {
		t.Errorf("%v is tried first", n)
	}
}
