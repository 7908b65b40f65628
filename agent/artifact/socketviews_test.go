package artifact

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// looking gives one view after the other, the last again and again.
func looking(views ...socketView) func(map[uint64]Text) (socketView, error) {
	return func(suspects map[uint64]Text) (socketView, error) {
		for inode := range suspects {
			suspects[inode] = "LISTEN"
		}
		view := views[0]
		if len(views) > 1 {
			views = views[1:]
		}
		return view, nil
	}
}

func TestSocketsAreLookedAtAgainBeforeTheyAreTold(t *testing.T) {
	list := func(inodes ...uint64) []uint64 { return inodes }
	for name, c := range map[string]struct {
		views []socketView
		want  []suspectSocket
	}{
		"alike":                         {[]socketView{{list(1, 2), list(1, 2)}}, nil},
		"hidden from /proc":             {[]socketView{{list(1, 2, 3), list(1, 3)}}, []suspectSocket{{2, true, "LISTEN"}}},
		"hidden from sock_diag":         {[]socketView{{list(1), list(1, 9)}}, []suspectSocket{{9, false, "LISTEN"}}},
		"it began between the lists":    {[]socketView{{list(1), list(1, 2)}, {list(1, 2), list(1, 2)}}, nil},
		"it ended between the lists":    {[]socketView{{list(1, 2), list(1)}, {list(1), list(1)}}, nil},
		"another one at each look":      {[]socketView{{list(1), nil}, {list(2), nil}, {list(3), nil}}, nil},
		"it is in one, then the other":  {[]socketView{{list(1), nil}, {nil, list(1)}}, nil},
		"one stays, another comes late": {[]socketView{{list(1), nil}, {list(1, 2), nil}}, []suspectSocket{{1, true, "LISTEN"}}},
	} {
		s := newSheet(t.Context(), "test", io.Discard, new(Record))
		got, err := compareSockets(&differ{s: s}, looking(c.views...))
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(suspectSocket{})); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
	s := newSheet(t.Context(), "test", io.Discard, new(Record))
	broken := errors.New("half a list")
	got, err := compareSockets(&differ{s: s}, func(map[uint64]Text) (socketView, error) { return socketView{diag: list(1)}, broken })
	if got != nil || !errors.Is(err, broken) {
		t.Errorf("of a list that is not whole %v was told, %v", got, err)
	}
}

// Sockets that come and go while the lists are read are no difference; nor is
// anything else on a host without a rootkit, in any of its namespaces.
func TestSocketsOfThisHostAreInBothViews(t *testing.T) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
				l.Close()
			}
			if l, err := net.Listen("unix", "@comes and goes"); err == nil {
				l.Close()
			}
		}
	}()
	defer func() { close(stop); <-done }()
	var out bytes.Buffer
	rec := new(Record)
	s := newSheet(t.Context(), "anomalies", &out, rec)
	d := &differ{s: s}
	if err := new(Host).checkSockets(d); err != nil {
		t.Fatal(err)
	}
	if err := s.close(nil); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows[Anomaly](t, &out) {
		t.Errorf("told: %+v", row)
	}
	if len(new(Host).comparedKinds()) == 0 {
		t.Log("this kernel has no sock_diag loaded: nothing was compared")
	}
	for _, e := range entries(t, rec) {
		if e.Error != "" && strings.HasPrefix(string(e.Path), "comparison") {
			t.Errorf("on record: %+v", e)
		}
	}
}
