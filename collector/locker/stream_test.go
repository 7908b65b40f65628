package locker

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// shelf is as much of S3 as streams need: one upload, one object.
type shelf struct {
	t       *testing.T
	refuses int // number of the part that fails
	parts   map[int][]byte
	object  []byte
	sum     string
	locked  string // until, as it was asked
	aborted bool
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Error(err)
	}
	query := r.URL.Query()
	switch {
	case r.Method == "POST" && query.Has("uploads"):
		s.parts, s.locked = map[int][]byte{}, r.Header.Get("X-Amz-Object-Lock-Retain-Until-Date")
		fmt.Fprint(w, "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>")
	case r.Method == "PUT":
		number, _ := strconv.Atoi(query.Get("partNumber"))
		sum := sha256.Sum256(body)
		if number == s.refuses || r.Header.Get("X-Amz-Checksum-Sha256") != base64.StdEncoding.EncodeToString(sum[:]) {
			refuse(w, 400, "BadDigest")
			return
		}
		s.parts[number] = body
		w.Header().Set("ETag", fmt.Sprintf("%q", "e"+strconv.Itoa(number)))
	case r.Method == "POST":
		s.complete(w, r, body)
	case r.Method == "HEAD" && s.sum != "":
		w.Header().Set("X-Amz-Checksum-Sha256", s.sum)
		w.Header().Set("Content-Length", strconv.Itoa(len(s.object)))
	case r.Method == "HEAD":
		w.WriteHeader(404)
	case r.Method == "DELETE":
		s.aborted = true
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *shelf) complete(w http.ResponseWriter, r *http.Request, body []byte) {
	var list struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	if err := xml.Unmarshal(body, &list); err != nil || r.Header.Get("If-None-Match") != "*" {
		s.t.Errorf("complete: %v, %v", err, r.Header)
	}
	all := sha256.New()
	for i, p := range list.Part {
		if p.PartNumber != i+1 || strings.Trim(p.ETag, `"`) != "e"+strconv.Itoa(i+1) {
			s.t.Errorf("part %d is %+v", i+1, p)
		}
		sum := sha256.Sum256(s.parts[p.PartNumber])
		all.Write(sum[:])
		s.object = append(s.object, s.parts[p.PartNumber]...)
	}
	s.sum = fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(all.Sum(nil)), len(list.Part))
	fmt.Fprintf(w, "<CompleteMultipartUploadResult><ETag>e</ETag><ChecksumSHA256>%s</ChecksumSHA256></CompleteMultipartUploadResult>", s.sum)
}

func TestPutStream(t *testing.T) {
	torn := errors.New("torn")
	for name, tt := range map[string]struct {
		size    int
		end     error // of the reader; nil: io.EOF
		refuses int
		parts   int // 0: nothing is stored
	}{
		"one byte":                  {size: 1, parts: 1},
		"a part to the byte":        {size: streamPart, parts: 1},
		"a byte more":               {size: streamPart + 1, parts: 2},
		"nothing":                   {size: 0},
		"a reader that fails":       {size: streamPart + 5, end: torn},
		"a reader that is cut":      {size: streamPart + 5, end: io.ErrUnexpectedEOF},
		"a part that is not stored": {size: 2*streamPart + 1, refuses: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &shelf{t: t, refuses: tt.refuses}
			server := httptest.NewServer(s)
			defer server.Close()
			l := newLocker(t, server.URL, Config{Bucket: "evidence", Retention: time.Hour})
			want := bytes.Repeat([]byte("quicklime"), tt.size/9+1)[:tt.size]
			var r io.Reader = bytes.NewReader(want)
			if tt.end != nil {
				r = io.MultiReader(r, iotest.ErrReader(tt.end))
			}
			object, err := l.PutStream(t.Context(), StateKey("a", time.Now()), r)
			if tt.parts == 0 {
				if err == nil || s.sum != "" || !s.aborted || tt.end != nil && !errors.Is(err, tt.end) {
					t.Errorf("%+v, %v; aborted: %v", object, err, s.aborted)
				}
				return
			}
			if err != nil || !bytes.Equal(s.object, want) || len(s.parts) != tt.parts || object.Size != uint64(tt.size) || s.aborted {
				t.Errorf("%d parts of %d bytes, %+v, %v", len(s.parts), len(s.object), object, err)
			}
			if s.locked != "" {
				t.Errorf("a snapshot is locked until %s", s.locked)
			}
		})
	}
}

func TestStateKeys(t *testing.T) {
	taken := time.Date(2026, 11, 26, 18, 30, 0, 5, time.FixedZone("", 3600))
	key := StateKey("ip-10-0-0-1", taken)
	if key != "state/ip-10-0-0-1/20261126T173000Z.db" || checkKey(key) != nil {
		t.Errorf("key is %q, %v", key, checkKey(key))
	}
	if at, ok := StateTaken(key); !ok || !at.Equal(taken.Truncate(time.Second)) {
		t.Errorf("taken at %v, %v", at, ok)
	}
	if StateKey("a/b", taken) != "" || StateKey("..", taken) != "" {
		t.Error("a node's name leads elsewhere")
	}
	if !slices.IsSorted([]string{key, StateKey("ip-10-0-0-1", taken.Add(time.Second)), StateKey("ip-10-0-0-1", taken.Add(400*24*time.Hour))}) {
		t.Error("keys do not ascend")
	}
	for _, bad := range []string{"", "state/a/20261126T173000Z", "state/a/2026.db", "cases/a/20261126T173000Z.db", "state/../20261126T173000Z.db", "state/a/20261126T173000Z.db.part"} {
		if _, ok := StateTaken(bad); ok {
			t.Errorf("%q is a snapshot", bad)
		}
	}
}
