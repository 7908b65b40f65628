package upload

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/agent/pack"
)

// What is quoted of an answer is cut at a length, and half a secret would
// pass a search for the whole of it.
func TestHalfASecretIsNotToldEither(t *testing.T) {
	signed := "https://bucket.example/key?X-Amz-Credential=AKIDEXAMPLE%2F20261123&X-Amz-Security-Token=" + strings.Repeat("tokentoken", 40) + "&X-Amz-Signature=" + secret
	for name, told := range map[string]string{
		"the URL":                 signed,
		"the URL, begun late":     strings.Repeat("x", 190) + signed,
		"the signature":           secret,
		"half of it is in bounds": strings.Repeat("x", 190) + secret,
		"the token":               strings.Repeat("tokentoken", 40),
		"the credential, decoded": strings.Repeat("x", 190) + "AKIDEXAMPLE/20261123",
	} {
		t.Run(name, func(t *testing.T) {
			told = strings.ReplaceAll(told, "&", "&amp;")
			for _, answer := range []string{"<Error><Code>A</Code><Message>" + told + "</Message></Error>", "<Error><Code>" + told + "</Code></Error>"} {
				_, err := judge(http.StatusForbidden, []byte(answer), secretsOf(signed))
				for _, part := range []string{secret[:6], "tokentoken", "AKIDEX", "X-Amz"} {
					if strings.Contains(err.Error(), part) {
						t.Errorf("%q is told: %v", part, err)
					}
				}
			}
		})
	}
}

// An agent reports its progress while several parts are on their way.
func TestStatsCountWhatIsStored(t *testing.T) {
	server := newS3(t, answers(503, "SlowDown"), answers(503, "SlowDown"))
	u := New(&grants{url: server.URL}, Options{Client: testClient(t, server)})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if err := u.Put(t.Context(), testPart(1<<20)); err != nil {
				t.Error(err)
			}
		})
	}
	stop := time.After(10 * time.Second)
	for u.Stats().Parts < 4 {
		select {
		case <-stop:
			t.Fatalf("after 10 s: %+v", u.Stats())
		case <-time.After(time.Millisecond):
		}
	}
	group.Wait()
	if got, want := u.Stats(), (Stats{Parts: 4, Bytes: 4 << 20, Retries: 2}); got != want {
		t.Errorf("Stats = %+v, want %+v", got, want)
	}
}

// A part that is found stored counts as stored; one that is refused does not.
func TestStatsOfWhatIsStoredAlreadyAndRefused(t *testing.T) {
	u := New(&grants{stored: func() bool { return true }}, Options{})
	if err := u.Put(t.Context(), testPart(8)); err != nil {
		t.Fatal(err)
	}
	if got, want := u.Stats(), (Stats{Parts: 1, Bytes: 8}); got != want {
		t.Errorf("Stats = %+v, want %+v", got, want)
	}
	server := newS3(t, answers(404, "NoSuchUpload"))
	u = New(&grants{url: server.URL}, Options{Client: testClient(t, server)})
	if err := u.Put(t.Context(), pack.Part{Number: 1, Bytes: []byte("evidence")}); err == nil || u.Stats() != (Stats{}) {
		t.Errorf("Put = %v, Stats = %+v", err, u.Stats())
	}
}
