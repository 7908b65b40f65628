package locker

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

const (
	key      = "cases/c1/i-1/memory/image.lime.zst"
	partSize = 5 << 20
)

var parts = []evidence.Part{
	{Number: 1, Size: partSize, SHA256: evidence.Digest{1}, ETag: "e1"},
	{Number: 2, Size: partSize, SHA256: evidence.Digest{2}, ETag: "e2"},
}

// TestWriteFaults tells what becomes of a write that goes wrong, once for an
// object of parts and once for a small one.
func TestWriteFaults(t *testing.T) {
	another := &held{sum: "another", size: 3, version: "v0"}
	tests := []struct {
		story  string
		faults []fault
		heads  []int
		object *held // there already
		kind   error // nil: success, unless says is set
		says   string
		writes int
	}{
		{story: "it is done", writes: 1},
		{story: "it is done, and the answer is lost", faults: []fault{{persist: true}}, writes: 1},
		{story: "the connection breaks, and it is not done", faults: []fault{{code: "none"}}, writes: 2},
		{story: "S3 fails", faults: []fault{{status: 500, code: "InternalError"}}, writes: 2},
		{story: "S3 fails, but has done it", faults: []fault{{status: 500, code: "InternalError", persist: true}}, writes: 1},
		{story: "S3 says 200 with a fault inside", faults: []fault{{status: 200, code: "InternalError"}}, writes: 2},
		{story: "S3 is busy twice", faults: []fault{{status: 503, code: "SlowDown"}, {status: 503, code: "SlowDown"}}, writes: 3},
		{story: "S3 is busy for long", faults: slices.Repeat([]fault{{status: 503, code: "SlowDown"}}, 9), says: "SlowDown", writes: 6},
		{story: "another write was under way, and failed", faults: []fault{{status: 409, code: "ConditionalRequestConflict"}}, writes: 2},
		{story: "another write of the same was under way", faults: []fault{{status: 409, code: "ConditionalRequestConflict", persist: true}}, writes: 1},
		{story: "another object is there", object: another, kind: ErrExists, says: "v0", writes: 1},
		{story: "it is forbidden", faults: []fault{{status: 403, code: "AccessDenied"}}, says: "AccessDenied", writes: 1},
		{story: "a part is not the one that S3 has", faults: []fault{{status: 400, code: "InvalidPart"}}, says: "InvalidPart", writes: 1},
		{story: "the bucket cannot say what it holds", faults: []fault{{status: 500, code: "InternalError", persist: true}}, heads: []int{500}, says: "cannot look at object", writes: 1},
		{story: "S3 says done and still works on it", heads: []int{404}, writes: 2},
		{story: "S3 says done and holds nothing", faults: slices.Repeat([]fault{{lies: true}}, 9), says: "S3 said that it was done, but", writes: 6},
		{story: "S3 answers with another hash", faults: []fault{{answer: "x"}}, says: "do not trust this object", writes: 1},
	}
	for kind, write := range map[string]func(context.Context, *Locker) (Object, error){
		"complete": func(ctx context.Context, l *Locker) (Object, error) { return l.Complete(ctx, key, "u1", parts) },
		"put":      func(ctx context.Context, l *Locker) (Object, error) { return l.Put(ctx, key, []byte("the body")) },
	} {
		for _, test := range tests {
			t.Run(kind+": "+test.story, func(t *testing.T) {
				if kind == "put" && test.faults != nil && test.faults[0].status == 200 {
					t.Skip("PutObject answers only when it is done")
				}
				b, l := newBucket(t)
				b.faults, b.heads, b.object = test.faults, test.heads, test.object
				got, err := write(t.Context(), l)
				if b.writes != test.writes {
					t.Errorf("%d writes, want %d", b.writes, test.writes)
				}
				if test.kind != nil || test.says != "" {
					if err == nil || test.kind != nil && !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.says) || got != (Object{}) {
						t.Errorf("got %+v, %v; want %v with %q", got, err, test.kind, test.says)
					}
					return
				}
				if err != nil || got.SHA256 != b.object.sum || got.VersionID != "v1" || got.Key != key {
					t.Fatalf("got %+v, %v", got, err)
				}
				again, err := write(t.Context(), l)
				if err != nil || again != got {
					t.Errorf("the second time it gives %+v, %v; the first time %+v", again, err, got)
				}
			})
		}
	}
}

// TestAPutThatTellsAllIsOneRequest: the bucket is not asked what it holds where
// the answer names version and hash, and still is where the hash is not ours.
func TestAPutThatTellsAllIsOneRequest(t *testing.T) {
	b, _ := newBucket(t)
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	l := newLocker(t, server.URL, Config{Bucket: "evidence", Retention: time.Hour})
	b.tells, b.heads = true, []int{500}
	got, err := l.Put(t.Context(), key, []byte("the body"))
	if err != nil || got.VersionID != "v1" || got.SHA256 != b.object.sum || got.Size != 8 || time.Until(got.LockedUntil) < 59*time.Minute || len(b.heads) != 1 {
		t.Errorf("got %+v, %v; %d answers to HEAD are left, want 1", got, err, len(b.heads))
	}
	b.object, b.heads, b.faults = nil, nil, []fault{{answer: "another"}}
	if got, err := l.Put(t.Context(), key, []byte("the body")); err == nil || !strings.Contains(err.Error(), "do not trust this object") {
		t.Errorf("of another hash: %+v, %v", got, err)
	}
}

func TestCompleteGivesTheWholeObject(t *testing.T) {
	_, l := newBucket(t)
	got, err := l.Complete(t.Context(), key, "u1", parts)
	want := Object{Key: key, VersionID: "v1", Size: 2 * partSize, SHA256: evidence.Composite(parts), LockedUntil: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)}
	if err != nil || got != want {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestCompleteOfAGoneUpload(t *testing.T) {
	b, l := newBucket(t)
	b.upload = false
	if _, err := l.Complete(t.Context(), key, "u1", parts); !errors.Is(err, ErrNoUpload) {
		t.Errorf("neither upload nor object: %v", err)
	}
	b.object = &held{sum: evidence.Composite(parts), size: 2 * partSize, version: "v1"}
	if got, err := l.Complete(t.Context(), key, "u1", parts); err != nil || got.VersionID != "v1" {
		t.Errorf("completed before: %+v, %v", got, err)
	}
	b.object.size--
	if _, err := l.Complete(t.Context(), key, "u1", parts); !errors.Is(err, ErrExists) {
		t.Errorf("another object: %v", err)
	}
}

func TestCompleteRefuses(t *testing.T) {
	b, l := newBucket(t)
	swapped := []evidence.Part{parts[1], parts[0]}
	untagged := []evidence.Part{{Number: 1, Size: 1}}
	for name, call := range map[string]func() (Object, error){
		"no parts":         func() (Object, error) { return l.Complete(t.Context(), key, "u1", nil) },
		"too many parts":   func() (Object, error) { return l.Complete(t.Context(), key, "u1", make([]evidence.Part, 10_001)) },
		"parts swapped":    func() (Object, error) { return l.Complete(t.Context(), key, "u1", swapped) },
		"part without tag": func() (Object, error) { return l.Complete(t.Context(), key, "u1", untagged) },
		"no key":           func() (Object, error) { return l.Complete(t.Context(), "", "u1", parts) },
		"a key outside":    func() (Object, error) { return l.Put(t.Context(), "cases/../x", nil) },
	} {
		if _, err := call(); err == nil {
			t.Errorf("%s is allowed", name)
		}
	}
	if b.writes > 0 {
		t.Error("S3 was asked")
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	b, l := newBucket(t)
	l.pause = time.Hour
	b.faults = []fault{{status: 503, code: "SlowDown"}}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("the step's limit"))
	defer cancel()
	_, err := l.Put(ctx, key, []byte("x"))
	if err == nil || !strings.Contains(err.Error(), "the step's limit") || !strings.Contains(err.Error(), "SlowDown") {
		t.Error(err)
	}
}

func TestLockAndKey(t *testing.T) {
	for name, test := range map[string]struct {
		cfg  Config
		want string
	}{
		"the bucket's defaults": {Config{Bucket: "evidence"}, "   "},
		"locked and encrypted": {Config{Bucket: "evidence", Retention: 24 * time.Hour, KMSKeyID: "key-1"},
			"COMPLIANCE 2026-11-24T12:00:00Z aws:kms key-1"},
	} {
		for call, do := range map[string]func(l *Locker) error{
			"begin": func(l *Locker) error { _, err := l.Begin(t.Context(), key); return err },
			"put":   func(l *Locker) error { _, err := l.Put(t.Context(), key, nil); return err },
		} {
			b, l := newBucket(t)
			l.cfg.Retention, l.cfg.KMSKeyID = test.cfg.Retention, test.cfg.KMSKeyID
			l.now = func() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }
			if err := do(l); err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprint(b.headers.Get("X-Amz-Object-Lock-Mode"), " ", b.headers.Get("X-Amz-Object-Lock-Retain-Until-Date"), " ",
				b.headers.Get("X-Amz-Server-Side-Encryption"), " ", b.headers.Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"))
			if got != test.want {
				t.Errorf("%s, %s: headers %q, want %q", name, call, got, test.want)
			}
		}
	}
}
