package discord

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/quicklime-ir/quicklime/collector/notify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func receiver(t *testing.T) *Receiver {
	t.Helper()
	r, err := Start()
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

func TestWhatDiscordTakes(t *testing.T) {
	r := receiver(t)
	tests := []struct {
		name, url, body string
		code            int
	}{
		{"a message", r.URL(), `{"content":"hello"}`, 204},
		{"a message whose id is wanted", r.URL() + "?wait=true", `{"embeds":[{"title":"x"}]}`, 200},
		{"an empty message", r.URL(), `{}`, 400},
		{"no JSON", r.URL(), `hello`, 400},
		{"a long content", r.URL(), `{"content":"` + strings.Repeat("x", 2001) + `"}`, 400},
		{"a long title", r.URL(), `{"embeds":[{"title":"` + strings.Repeat("x", 257) + `"}]}`, 400},
		{"a field without value", r.URL(), `{"embeds":[{"fields":[{"name":"x"}]}]}`, 400},
		{"too much in all", r.URL(), `{"embeds":[{"description":"` + strings.Repeat("x", 4000) + `"},{"description":"` + strings.Repeat("x", 4000) + `"}]}`, 400},
		{"another token", strings.Replace(r.URL(), "lab-token", "guess", 1), `{"content":"hello"}`, 401},
	}
	for _, tt := range tests {
		answer, err := http.Post(tt.url, "application/json", strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != tt.code {
			t.Errorf("%s: %d %s, want %d", tt.name, answer.StatusCode, text, tt.code)
		}
	}
	if n := len(r.Messages()); n != 2 {
		t.Errorf("%d messages were kept, want 2", n)
	}
}

// TestTheCollectorsNotifierIsTaken runs the real sender against the receiver,
// which says at first that it is too much.
func TestTheCollectorsNotifierIsTaken(t *testing.T) {
	r := receiver(t)
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
