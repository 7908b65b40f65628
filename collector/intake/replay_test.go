package intake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/quicklime-ir/quicklime/collector/finding"
)

// handing takes every event that does not say "bad", into a case of its name.
func handing(got *[]string) Hand {
	return func(_ context.Context, raw []byte) ([]string, error) {
		*got = append(*got, string(raw))
		if bytes.Contains(raw, []byte("bad")) {
			return nil, malformed("")
		}
		return []string{"case-of-" + string(raw[:min(len(raw), 10)])}, nil
	}
}

func replayed(t *testing.T, api *fakeQueue, most int, hand Hand) (lines []string, err error) {
	t.Helper()
	err = Replay(t.Context(), api, fakeLetters, most, hand, func(r Replayed) { lines = append(lines, r.String()) })
	slices.Sort(lines)
	return lines, err
}

func TestReplayTakesWhatItCanAndLeavesTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, got := &fakeQueue{}, []string{}
		for n := range 25 {
			api.put(fmt.Sprint("good", n))
		}
		api.put("bad")
		lines, err := replayed(t, api, 1000, handing(&got))
		if err != nil || len(lines) != 26 || len(got) != 26 {
			t.Fatalf("%v, %d lines, %d handed in", err, len(lines), len(got))
		}
		if lines[0] != "m-bad left: finding is malformed: $.detail is missing; send the event" || lines[1] != "m-good0 taken: case-of-good0" {
			t.Errorf("%q", lines[:2])
		}
		if len(api.live) != 1 || api.live[0].body != "bad" || api.live[0].visible.After(time.Now()) {
			t.Errorf("left %+v, want the bad one, shown again", api.live)
		}
	})
}

func TestReplayEndsAtItsMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, got := &fakeQueue{}, []string{}
		for n := range 25 {
			api.put(fmt.Sprint("good", n))
		}
		if lines, err := replayed(t, api, 12, handing(&got)); err != nil || len(lines) != 12 || len(api.live) != 13 {
			t.Errorf("%v, %d lines, %d left", err, len(lines), len(api.live))
		}
	})
}

func TestReplayTellsOfAMessageOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, got := &fakeQueue{}, []string{}
		api.put("bad", "slow")
		hand := func(ctx context.Context, raw []byte) ([]string, error) {
			if string(raw) == "slow" {
				sleep(ctx, replayHide) // the bad one is shown meanwhile
			}
			return handing(&got)(ctx, raw)
		}
		if lines, err := replayed(t, api, 1000, hand); err != nil || len(lines) != 2 || len(got) != 2 {
			t.Errorf("%v, %q", err, lines)
		}
	})
}

func TestWhatCanGoWrongInAReplay(t *testing.T) {
	for _, c := range []struct {
		name  string
		api   *fakeQueue
		body  string
		says  string // in what it prints
		err   string
		left  int
		lines int
	}{
		{"the queue cannot be read", &fakeQueue{failReceive: 1}, "good", "", "cannot receive from " + fakeLetters, 1, 0},
		{"what was taken cannot be deleted", &fakeQueue{failDelete: 1}, "good",
			"m-good left: taken by case-of-good, but it cannot be deleted; where it is replayed, it joins them: 503", "", 1, 1},
		{"the delete's answer is lost", &fakeQueue{loseDelete: 1}, "good", "m-good left: taken by case-of-good", "", 0, 1},
		{"what was left cannot be shown", &fakeQueue{failHide: 1}, "bad", "m-bad left: finding is malformed", "cannot show message m-bad again", 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.api.put(c.body)
				lines, err := replayed(t, c.api, 1000, handing(new([]string)))
				if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				if len(lines) != c.lines || !strings.Contains(strings.Join(lines, "\n"), c.says) || len(c.api.live) != c.left {
					t.Errorf("%q, %d left", lines, len(c.api.live))
				}
			})
		})
	}
}

func TestAStoppedReplayShowsWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeQueue{}
		api.put("a", "b", "c")
		ctx, cancel := context.WithCancel(t.Context())
		var lines int
		err := Replay(ctx, api, fakeLetters, 10, func(context.Context, []byte) ([]string, error) {
			cancel()
			return nil, context.Canceled
		}, func(Replayed) { lines++ })
		if !errors.Is(err, context.Canceled) || lines != 1 || len(api.live) != 3 {
			t.Errorf("%v, %d lines, %d left", err, lines, len(api.live))
		}
		for _, m := range api.live {
			if m.visible.After(time.Now()) {
				t.Errorf("%s is hidden", m.body)
			}
		}
	})
}

func TestReplayFile(t *testing.T) {
	long := strings.Repeat("x", finding.MaxSize+10)
	for _, c := range []struct {
		name, file string
		handed     []string // their first 40 bytes
		names      []string
	}{
		{"nothing", "", nil, nil},
		{"an event", `{"a":1}`, []string{`{"a":1}`}, []string{"line 1"}},
		{"an event of many lines", "{\n \"a\": 1\n}\n", []string{"{\n \"a\": 1\n}\n"}, []string{"event"}},
		{"a broken event", "{\n \"a\": bad\n}\n", []string{"{\n \"a\": bad\n}\n"}, []string{"event"}},
		{"an event a line", "{\"a\":1}\n{\"a\":2}\n", []string{`{"a":1}`, `{"a":2}`}, []string{"line 1", "line 2"}},
		{"empty lines, and Windows' ends", "\n{\"a\":1}\r\n\n{\"a\":2}", []string{`{"a":1}`, `{"a":2}`}, []string{"line 2", "line 4"}},
		{"a broken one in between", "{\"a\":1}\n{bad\n{\"a\":3}\n", []string{`{"a":1}`, `{bad`, `{"a":3}`}, []string{"line 1", "line 2", "line 3"}},
		{"one that is too long in between", "{\"a\":1}\n" + long + "\n{\"a\":3}\n", []string{`{"a":1}`, long[:40], `{"a":3}`}, []string{"line 1", "line 2", "line 3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var handed, names []string
			err := ReplayFile(t.Context(), iotest.OneByteReader(strings.NewReader(c.file)), func(_ context.Context, raw []byte) ([]string, error) {
				if len(raw) > finding.MaxSize+2 {
					t.Errorf("%d bytes at once", len(raw))
				}
				handed = append(handed, string(raw[:min(len(raw), 40)]))
				return nil, nil
			}, func(r Replayed) { names = append(names, r.Name) })
			if err != nil || !slices.Equal(handed, c.handed) || !slices.Equal(names, c.names) {
				t.Errorf("%v: %q as %q, want %q as %q", err, handed, names, c.handed, c.names)
			}
		})
	}
	broken := io.MultiReader(strings.NewReader("{}\n"), iotest.ErrReader(errDown))
	if err := ReplayFile(t.Context(), broken, handing(new([]string)), func(Replayed) {}); !errors.Is(err, errDown) {
		t.Errorf("a file that cannot be read to its end: %v", err)
	}
}

func TestWhatIsPrintedDoesNothingToATerminal(t *testing.T) {
	line := Replayed{Name: "line 1", Err: errors.New("no\x1b[2J\nline 2 taken: all\u202e")}.String()
	if strings.ContainsAny(line, "\x1b\n\u202e") {
		t.Errorf("%q", line)
	}
}

// FuzzReplayFile: every line that holds anything is told of once, and nothing
// is handed in that is longer than two events.
func FuzzReplayFile(f *testing.F) {
	f.Add("{}\n{}\n")
	f.Add("\n\r\n{\n}\n")
	f.Add("{}\nbad\n\x00")
	f.Fuzz(func(t *testing.T, file string) {
		var handed, told int
		err := ReplayFile(t.Context(), strings.NewReader(file), func(_ context.Context, raw []byte) ([]string, error) {
			if handed++; len(raw) == 0 || len(raw) > 2*finding.MaxSize+3 {
				t.Errorf("%d bytes are handed in", len(raw))
			}
			return nil, nil
		}, func(Replayed) { told++ })
		if err != nil || handed != told || (handed > 0) != (strings.TrimSpace(file) != "") {
			t.Errorf("%v: %d handed in, %d told of", err, handed, told)
		}
	})
}
