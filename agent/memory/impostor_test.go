package memory

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/lime"
)

var limePort = regexp.MustCompile(`^path=tcp:(\d+) format=lime localhostonly=1 timeout=0( digest=sha256)?$`)

// listenAs opens the port that a module was told.
func listenAs(parameters string) (net.Listener, error) {
	found := limePort.FindStringSubmatch(parameters)
	if found == nil {
		return nil, fmt.Errorf("parameters %q", parameters)
	}
	return net.Listen("tcp4", "127.0.0.1:"+found[1])
}

// TestAnImpostorOnTheModulesPort: a local user who listens on the port first
// can send a whole image; the module's failed load, whenever it fails, gives
// it away.
func TestAnImpostorOnTheModulesPort(t *testing.T) {
	whole := stream(ram...)
	for _, tt := range []struct {
		name   string
		before int // bytes that the impostor sends before the load fails
	}{
		{"the load fails before the first byte", 0},
		{"the load fails within the first header", 10},
		{"the load fails within the image", len(whole) / 2},
		{"the load fails after the image", len(whole)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var impostor sync.WaitGroup
			defer impostor.Wait()
			k := kernel{
				abort:  func() {},
				unload: func() error { t.Error("a module that did not load was removed"); return nil },
				load: func(parameters string) error {
					l, err := listenAs(parameters)
					if err != nil {
						return err
					}
					sent := make(chan struct{})
					impostor.Go(func() {
						defer l.Close()
						conn, err := l.Accept()
						if err != nil {
							t.Error(err)
							return
						}
						defer conn.Close()
						_, _ = conn.Write(whole[:tt.before])
						close(sent)
						time.Sleep(50 * time.Millisecond) // the kernel says no
						_, _ = conn.Write(whole[tt.before:])
					})
					<-sent
					return fmt.Errorf("cannot load module: %w", unix.EADDRINUSE)
				},
			}
			s, err := startLime(t.Context(), ram, k, plain)
			if err == nil {
				_, err = readAll(t.Context(), s)
				if err := s.Close(); err != nil {
					t.Errorf("closing: %v", err)
				}
			}
			if !strings.Contains(fmt.Sprint(err), "another program") || !strings.Contains(fmt.Sprint(err), "address already in use") {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestAThiefOfTheStream: LiME serves whom comes first. A local user who does,
// and neither reads nor leaves, must not keep the module loaded.
func TestAThiefOfTheStream(t *testing.T) {
	aborted := make(chan struct{})
	removed := false
	k := kernel{
		load: func(parameters string) error {
			l, err := listenAs(parameters)
			if err != nil {
				return err
			}
			defer l.Close()
			thief, err := net.Dial("tcp4", l.Addr().String())
			if err != nil {
				return err
			}
			defer thief.Close()
			<-aborted // the module waits for room in the thief's window
			return nil
		},
		abort:  sync.OnceFunc(func() { close(aborted) }),
		unload: func() error { removed = true; return nil },
	}
	o := plain
	o.connect = 100 * time.Millisecond
	var r *Refusal
	if _, err := startLime(t.Context(), ram, k, o); !errors.As(err, &r) || !strings.Contains(r.Detail, "connected to it first") {
		t.Errorf("error %v", err)
	}
	if !removed {
		t.Error("the module stayed")
	}
}

// TestALoadThatDoesNotEnd after the image: whose image it is stays unknown.
func TestALoadThatDoesNotEnd(t *testing.T) {
	k, loaded := fakeModule(t, stream(ram...), 0, nil)
	send, end := k.load, make(chan struct{})
	k.load = func(parameters string) error {
		err := send(parameters)
		<-end
		return err
	}
	s, err := startLime(t.Context(), ram, k, plain)
	if err != nil {
		t.Fatal(err)
	}
	s.stall = 50 * time.Millisecond
	if _, err := readAll(t.Context(), s); !strings.Contains(fmt.Sprint(err), "does not end") {
		t.Errorf("error %v", err)
	}
	close(end)
	if err := s.Close(); err != nil || loaded.Load() != 0 {
		t.Errorf("closing: %v, %d modules left", err, loaded.Load())
	}
}

// hashing is a module that sends its image, and tells the digest to whom
// connects next, or to a thief who comes first; nil: it could not hash.
func hashing(send, tell []byte, thief bool) kernel {
	return kernel{
		abort:  func() {},
		unload: func() error { return nil },
		load: func(parameters string) error {
			if !strings.HasSuffix(parameters, " digest=sha256") {
				return fmt.Errorf("parameters %q", parameters)
			}
			for _, b := range [][]byte{send, tell} {
				if b == nil {
					return nil
				}
				l, err := listenAs(parameters)
				if err != nil {
					return nil
				}
				if thief && &b[0] == &tell[0] {
					first, err := net.Dial("tcp4", l.Addr().String())
					if err != nil {
						return err
					}
					defer first.Close()
				}
				conn, err := l.Accept()
				if err != nil {
					return err
				}
				_, _ = conn.Write(b)
				conn.Close()
				l.Close()
			}
			return nil
		},
	}
}

// TestTheModulesDigest needs a second client, else the load never ends. One
// that differs fails the image; that none comes is told, and no failure.
func TestTheModulesDigest(t *testing.T) {
	whole := stream(ram...)
	sum := sha256.Sum256(whole)
	right := hex.EncodeToString(sum[:])
	for _, tt := range []struct {
		name  string
		tell  []byte
		thief bool
		err   string
		want  string // of what Digest says
	}{
		{"the same", []byte(right), false, "", "sha256 " + right},
		{"another", []byte(strings.Repeat("0", 64)), false, "SHA-256", "differs"},
		{"the module could not hash", nil, false, "", "not told by the module: its load has ended"},
		{"not a digest", []byte("hello"), false, "", `it sent "hello"`},
		{"too long", []byte(right + "00"), false, "", "it sent"},
		{"another client was first", []byte(right), true, "", "not told"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := plain
			o.digest = true
			s, err := startLime(t.Context(), ram, hashing(whole, tt.tell, tt.thief), o)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := readAll(t.Context(), s); tt.err == "" && err != nil || tt.err != "" && !strings.Contains(fmt.Sprint(err), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			var w Witness = s
			if !strings.Contains(w.Digest(), tt.want) {
				t.Errorf("digest %q, want %q", w.Digest(), tt.want)
			}
			if err := s.Close(); err != nil {
				t.Errorf("closing: %v", err)
			}
		})
	}
}

// TestAStreamThatIsLeftEarly has both of the module's clients all the same.
func TestAStreamThatIsLeftEarly(t *testing.T) {
	o := plain
	o.digest = true
	s, err := startLime(t.Context(), ram, hashing(stream(ram...), []byte("x"), false), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil || !strings.HasPrefix(s.Digest(), "not asked for") {
		t.Errorf("closing: %v, digest %q", err, s.Digest())
	}
}

func TestTheKernelsSHA256(t *testing.T) {
	const good = "name         : sha256\ndriver       : sha256-ni\nmodule       : kernel\nselftest     : passed\ntype         : shash\n\n"
	for name, tt := range map[string]struct {
		crypto string
		want   bool
	}{
		"there":                    {"name         : md5\ntype         : shash\nselftest     : passed\n\n" + good, true},
		"the last, without an end": {strings.TrimSpace(good), true},
		"none":                     {"name         : sha512\ntype         : shash\nselftest     : passed\n\n", false},
		"another that holds it":    {strings.Replace(good, ": sha256\n", ": hmac(sha256)\n", 1), false},
		"not yet tested":           {strings.Replace(good, "passed", "unknown", 1), false},
		"asynchronous":             {strings.Replace(good, "shash", "ahash", 1), false},
		"in two entries":           {"name : sha256\n\ntype : shash\nselftest : passed\n\n", false},
		"slow":                     {strings.Replace(good, "sha256-ni", "sha256-generic", 1), false},
		"nothing":                  {"", false},
	} {
		if got := listsSHA256(strings.NewReader(tt.crypto)); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzTheKernelsSHA256(f *testing.F) {
	f.Add("name : sha256\nselftest : passed\ntype : shash\n")
	f.Fuzz(func(t *testing.T, text string) {
		if listsSHA256(strings.NewReader(text)) && !strings.Contains(text, "sha256") {
			t.Fatal("there is none")
		}
	})
}

// TestZerosOfLiME: it writes zeros for pages that are none, and reads balloons
// without regard to what they are. Zeros of a page that is not real are a gap;
// its bytes, where it has any, are bytes.
func TestZerosOfLiME(t *testing.T) {
	three := []lime.Range{{Start: 0x1000, End: 0x3fff}}
	image := stream(three...)
	clear(image[lime.HeaderSize : lime.HeaderSize+0x2000]) // pages 1 and 2
	o := plain
	o.flags = openPageFlags(flagFile(t, map[int]uint64{1: offlinePage, 3: noPage}, 8), pageSize)
	defer o.flags.close()
	k, _ := fakeModule(t, image, 0, nil)
	s, err := startLime(t.Context(), three, k, o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, gaps, err := r.ReadPhys(t.Context(), 0x1000, 0x3000)
	want := []evidence.Gap{{Range: lime.Range{Start: 0x1000, End: 0x1fff}, Reason: evidence.Offline}}
	if err != nil || !slices.Equal(gaps, want) || s.PageFlags() != "read" {
		t.Errorf("gaps %v, error %v; page flags %q", gaps, err, s.PageFlags())
	}
}
