package preflight

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/agent/memory"
)

// image is a memory source that always works.
func image() memory.Options { return memory.Options{Prefer: "file", File: "/dev/null"} }

func TestWhoCanBeReached(t *testing.T) {
	s3 := httptest.NewTLSServer(http.NotFoundHandler())
	defer s3.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	open := listener.Addr().String()
	defer listener.Close()
	tests := []struct {
		name       string
		collectors []string
		s3         string
		unreached  string
		want       Verdict // where something is unreached
	}{
		{name: "nobody is asked"},
		{name: "the collector answers", collectors: []string{open}},
		{"the collector refuses", []string{"127.0.0.1:1"}, "", "collector 127.0.0.1:1 cannot be reached", Unable},
		{"one node of two refuses", []string{"127.0.0.1:1", open}, "", "collector 127.0.0.1:1 cannot be reached", Degraded},
		{"both nodes refuse", []string{"127.0.0.1:1", "127.0.0.1:2"}, "", "collector 127.0.0.1:2 cannot be reached", Unable},
		{"S3 has a certificate that nobody trusts", nil, s3.URL, "certificate", Unable},
		{"S3 without TLS", nil, "http://127.0.0.1:1", "is no https:// address", Unable},
		{"S3 is no address", nil, "%", "is no https:// address", Unable},
	}
	// What the host itself lacks makes it degraded at least, or unable.
	host := Check(t.Context(), Options{Memory: image()}).Verdict
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Check(t.Context(), Options{Memory: image(), Collectors: tt.collectors, S3: tt.s3})
			said := strings.Join(r.Reasons, "\n")
			if tt.unreached == "" && strings.Contains(said, "reached") || !strings.Contains(said, tt.unreached) {
				t.Errorf("verdict %s, reasons %q", r.Verdict, r.Reasons)
			}
			if tt.unreached != "" && host != Unable && r.Verdict != tt.want {
				t.Errorf("verdict %s, want %s; reasons %q", r.Verdict, tt.want, r.Reasons)
			}
		})
	}
}

func TestAHostWithoutAMemorySource(t *testing.T) {
	r := Check(t.Context(), Options{Memory: memory.Options{Prefer: "lime", ModuleDir: t.TempDir()}})
	if r.Verdict != Unable || !slices.Contains(r.Reasons, "no memory source can be used") {
		t.Errorf("verdict %s, reasons %q", r.Verdict, r.Reasons)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "no_module") || !strings.Contains(text.String(), "unable") {
		t.Errorf("%s, %v", text.String(), err)
	}
	raw, err := json.Marshal(r)
	if err != nil || !bytes.Contains(raw, []byte(`"reason":"no_module"`)) {
		t.Errorf("%s, %v", raw, err)
	}
}

func TestTheVerdictNeverGetsBetter(t *testing.T) {
	r := Report{Verdict: Ready}
	for _, step := range []struct{ mind, want Verdict }{{Degraded, Degraded}, {Unable, Unable}, {Degraded, Unable}} {
		if r.mind(step.mind, "x"); r.Verdict != step.want {
			t.Errorf("after %s: %s, want %s", step.mind, r.Verdict, step.want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	if set := capabilities("000001ffffffffff"); set != 1<<41-1 {
		t.Errorf("%x", set)
	}
	if set := capabilities("none"); set != 0 {
		t.Errorf("%x", set)
	}
}

func FuzzCapabilities(f *testing.F) {
	f.Add("000001ffffffffff")
	f.Fuzz(func(t *testing.T, text string) { capabilities(text) })
}
