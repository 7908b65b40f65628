package discord

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/collector/notify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T) *Receiver {
	t.Helper()
	r, err := Start("127.0.0.1", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// post gives the answer's status, its JSON, and its headers.
func post(t *testing.T, url, body string) (int, map[string]any, http.Header) {
	t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]any{}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &said); err != nil {
			t.Fatalf("answer %q: %v", raw, err)
		}
	}
	return resp.StatusCode, said, resp.Header
}

func TestAMessageIsKept(t *testing.T) {
	r := start(t)
	before := time.Now()
	if code, said, _ := post(t, r.URL(), `{"content":"one"}`); code != http.StatusNoContent || len(said) > 0 {
		t.Errorf("answer %d %v", code, said)
	}
	body := `{"embeds":[{"title":"two","color":3,"url":"https://e.example/","fields":[{"name":"n","value":"v","inline":true}],"footer":{"text":"f"}}],"allowed_mentions":{"parse":[]}}`
	if code, said, _ := post(t, r.URL()+"?wait=true", body); code != http.StatusOK || said["id"] != "2" || said["embeds"] == nil {
		t.Errorf("answer %d %v", code, said)
	}
	got := r.Messages()
	if len(got) != 2 || got[0].Content != "one" || got[1].Embeds[0].Title != "two" || got[1].Embeds[0].Fields[0] != (Field{"n", "v", true}) {
		t.Fatalf("kept %+v", got)
	}
	if got[0].Received.Before(before) || got[1].Received.Before(got[0].Received) || got[1].Received.After(time.Now()) {
		t.Errorf("received at %v and %v", got[0].Received, got[1].Received)
	}
}

// embed gives a message of one embed.
func embed(e Embed) string {
	raw, _ := json.Marshal(Message{Embeds: []Embed{e}})
	return string(raw)
}

func fields(n, name, value int) []Field {
	return slices.Repeat([]Field{{Name: strings.Repeat("n", name), Value: strings.Repeat("v", value)}}, n)
}

func TestLimits(t *testing.T) {
	long := func(n int) string { return strings.Repeat("ü", n) }
	content := func(n int) string { return fmt.Sprintf(`{"content":%q}`, long(n)) }
	embeds := func(n int) string {
		return `{"embeds":[` + strings.TrimSuffix(strings.Repeat(`{"title":"t"},`, n), ",") + `]}`
	}
	for _, tt := range []struct {
		name, body string
		code       int // 0: taken
	}{
		{"content", content(2000), 0},
		{"content over", content(2001), codeForm},
		{"embeds", embeds(10), 0},
		{"embeds over", embeds(11), codeForm},
		{"title", embed(Embed{Title: long(256)}), 0},
		{"title over", embed(Embed{Title: long(257)}), codeForm},
		{"description", embed(Embed{Description: long(4096)}), 0},
		{"description over", embed(Embed{Description: long(4097)}), codeForm},
		{"author over", embed(Embed{Author: Author{long(257)}}), codeForm},
		{"footer over", embed(Embed{Footer: Footer{long(2049)}}), codeForm},
		{"fields", embed(Embed{Fields: fields(25, 1, 1)}), 0},
		{"fields over", embed(Embed{Fields: fields(26, 1, 1)}), codeForm},
		{"field", embed(Embed{Fields: fields(1, 256, 1024)}), 0},
		{"field's name over", embed(Embed{Fields: fields(1, 257, 1)}), codeForm},
		{"field's value over", embed(Embed{Fields: fields(1, 1, 1025)}), codeForm},
		{"field without name", embed(Embed{Fields: []Field{{Value: "v"}}}), codeForm},
		{"field of spaces", embed(Embed{Fields: []Field{{Name: "n", Value: " \n"}}}), codeForm},
		{"all", embed(Embed{Description: long(4096), Fields: fields(2, 128, 824)}), 0},
		{"all over", embed(Embed{Title: "t", Description: long(4096), Fields: fields(2, 128, 824)}), codeForm},
		{"content is not in all", `{"content":"x",` + embed(Embed{Description: long(4096), Fields: fields(2, 128, 824)})[len(`{"content":"",`):], 0},
		{"colour over", embed(Embed{Title: "t", Color: 1 << 24}), codeForm},
		{"script", embed(Embed{Title: "t", URL: "javascript:x"}), codeForm},
		{"nothing", `{}`, codeEmpty},
		{"null", `null`, codeEmpty},
		{"spaces", `{"content":" "}`, codeEmpty},
		{"no embeds", `{"embeds":[]}`, codeEmpty},
		{"an embed of nothing", `{"embeds":[{}]}`, codeEmpty},
		{"half of JSON", `{"content":`, codeJSON},
		{"a list", `[]`, codeJSON},
		{"wrong type", `{"content":1}`, codeJSON},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t)
			code, said, _ := post(t, r.URL(), tt.body)
			if tt.code == 0 {
				if code != http.StatusNoContent || len(r.Messages()) != 1 {
					t.Errorf("answer %d %v, %d kept", code, said, len(r.Messages()))
				}
				return
			}
			if code != http.StatusBadRequest || said["code"] != float64(tt.code) || len(r.Messages()) != 0 {
				t.Errorf("answer %d %v, %d kept, want code %d", code, said, len(r.Messages()), tt.code)
			}
		})
	}
}

func TestWhoIsRefused(t *testing.T) {
	r := start(t)
	base := strings.TrimSuffix(r.URL(), hook+token)
	for path, want := range map[string]int{hook + "other": 401, hook: 401, hook + token + "/x": 401, "/api/webhooks/1/" + token: 404, "/": 404} {
		if code, said, _ := post(t, base+path, `{"content":"x"}`); code != want || said["message"] == "" {
			t.Errorf("%s: answer %d %v, want %d", path, code, said, want)
		}
	}
	resp, err := http.Get(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: answer %d", resp.StatusCode)
	}
	if resp, err = http.Post(r.URL(), "text/plain", strings.NewReader(`{"content":"x"}`)); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("text/plain: answer %d", resp.StatusCode)
	}
	if code, _, _ := post(t, r.URL(), `{"content":"`+strings.Repeat(" ", maxBody)+`"}`); code != http.StatusBadRequest {
		t.Errorf("a body over the bound: answer %d", code)
	}
	if got := r.Messages(); len(got) != 0 {
		t.Errorf("kept %+v", got)
	}
}

func TestFaults(t *testing.T) {
	r := start(t)
	r.Inject(Fault{Status: 429, RetryAfter: 1200 * time.Millisecond, Times: 2})
	r.Inject(Fault{Status: 503})
	for range 2 {
		code, said, headers := post(t, r.URL(), `{"content":"x"}`)
		if code != 429 || headers.Get("Retry-After") != "2" || said["retry_after"] != 1.2 {
			t.Errorf("answer %d %v, Retry-After %q", code, said, headers.Get("Retry-After"))
		}
	}
	if code, _, _ := post(t, r.URL(), `{"content":"x"}`); code != 503 {
		t.Errorf("answer %d", code)
	}
	if got := r.Messages(); len(got) != 0 {
		t.Errorf("kept %+v", got)
	}
	if code, _, _ := post(t, r.URL(), `{"content":"x"}`); code != 204 || len(r.Messages()) != 1 {
		t.Errorf("answer %d after the faults, %d kept", code, len(r.Messages()))
	}
}

// TestTheCollectorsNotifierIsTaken runs the real sender against the receiver,
// which says at first that it is too much.
func TestTheCollectorsNotifierIsTaken(t *testing.T) {
	r := start(t)
	r.Limit(2)
	n, err := notify.New(r.URL(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("@everyone `x` ", 1000)
	m := notify.Message{Title: long, Body: long}
	for range 30 {
		m.Fields = append(m.Fields, notify.Field{Name: long, Value: long})
	}
	if err := n.Notify(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got := r.Messages(); len(got) != 1 || strings.Contains(strings.ReplaceAll(got[0].Embeds[0].Title, `\@`, ""), "@") {
		t.Errorf("%d messages, or one that mentions somebody", len(got))
	}
}

// TestASlowSenderHoldsNobody leaves a message half sent.
func TestASlowSenderHoldsNobody(t *testing.T) {
	r := start(t)
	half, end := io.Pipe()
	var sender sync.WaitGroup
	sender.Go(func() {
		resp, err := http.Post(r.URL(), "application/json", half)
		if err == nil {
			resp.Body.Close()
		}
	})
	if _, err := end.Write([]byte(`{"content":`)); err != nil { // returns when it is being sent
		t.Fatal(err)
	}
	done := make(chan int, 1)
	go func() { done <- len(r.Messages()) }()
	select {
	case n := <-done:
		if n != 0 {
			t.Errorf("%d kept", n)
		}
	case <-time.After(5 * time.Second):
		t.Error("a slow sender holds the receiver")
	}
	if code, _, _ := post(t, r.URL(), `{"content":"quick"}`); code != 204 {
		t.Errorf("answer %d", code)
	}
	end.Write([]byte(`"slow"}`))
	end.Close()
	sender.Wait()
	if got := r.Messages(); len(got) != 2 || got[0].Content != "quick" || got[1].Content != "slow" {
		t.Errorf("kept %+v", got)
	}
}

func TestTheReceiverIsBounded(t *testing.T) {
	r := start(t)
	for range maxMessages {
		if _, err := r.keep(Message{Content: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if code, said, _ := post(t, r.URL(), `{"content":"x"}`); code != http.StatusInsufficientStorage || len(r.Messages()) != maxMessages {
		t.Errorf("answer %d %v, %d kept", code, said, len(r.Messages()))
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"content":"x","embeds":[{"title":"t","fields":[{"name":"n","value":"v"}]}]}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"embeds":[null]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, refused := parse(raw)
		if refused != nil {
			if refused.Message == "" || refused.Code == 0 {
				t.Fatalf("a refusal without a reason: %+v", refused)
			}
			return
		}
		if utf8.RuneCountInString(m.Content) > 2000 || len(m.Embeds) > 10 || (m.Content == "" && len(m.Embeds) == 0) {
			t.Fatalf("taken: %+v", m)
		}
		total := 0
		for _, e := range m.Embeds {
			total += utf8.RuneCountInString(e.Title + e.Description + e.Author.Name + e.Footer.Text)
			for _, f := range e.Fields {
				total += utf8.RuneCountInString(f.Name) + utf8.RuneCountInString(f.Value)
			}
		}
		if total > 6000 {
			t.Fatalf("taken with %d characters", total)
		}
	})
}
