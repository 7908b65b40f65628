package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

// eventOf is a finding as EventBridge delivers it.
func eventOf(n int, f world.Finding) string {
	return fmt.Sprintf(`{"version":"0","id":"6f1c1e0a-5a0c-4b35-9d0e-%012d","detail-type":"GuardDuty Finding","source":"aws.guardduty","account":%q,`+
		`"time":"2026-11-20T09:41:07Z","region":%q,"resources":[],"detail":%s}`, n, world.Account, world.Region, f.Detail(world.Region, world.Account))
}

// replay runs 'intake replay', and gives what it prints and its exit code.
func replay(t *testing.T, w *world.World, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binaries.Collector, append([]string{"intake", "replay", "--data", w.Data()}, args...)...)
	cmd.Env = w.Environ()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// queues is a client of the account's queues, as an operator has one.
func queues(t *testing.T, w *world.World) *sqs.Client {
	t.Helper()
	access, secret := w.Keys()
	sdk, err := config.LoadDefaultConfig(t.Context(), config.WithRegion(world.Region), config.WithBaseEndpoint(w.AWS.URL()),
		config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(access, secret, "")))
	if err != nil {
		t.Fatal(err)
	}
	return sqs.NewFromConfig(sdk)
}

// TestAMalformedEventIsPutAsideAndReplayed: what cannot be read lies in the
// dead-letter queue with the reason, on a day when SQS throttles and loses
// answers. Mended, it becomes a case; as it is, it stays.
func TestAMalformedEventIsPutAsideAndReplayed(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	attach(t, w, world.Victim)
	for _, kind := range []emulator.FaultKind{emulator.Throttle, emulator.Unavailable} {
		w.AWS.Inject(emulator.Fault{Service: "sqs", Action: "GetQueueAttributes", Kind: kind})
		w.AWS.Inject(emulator.Fault{Service: "sqs", Action: "SendMessage", Kind: kind})
	}
	good := eventOf(1, world.Compromised(world.Victim))
	bad := strings.Replace(good, `"version":"0"`, `"version":"1"`, 1)
	if err := w.AWS.SendRaw(bad); err != nil {
		t.Fatal(err)
	}
	awaitEmptyQueue(t, w)
	client, letters := queues(t, w), w.AWS.DeadLetterURL()
	got, err := client.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: &letters, MessageAttributeNames: []string{"quicklime.*"}, WaitTimeSeconds: 5, VisibilityTimeout: 1})
	if err != nil || len(got.Messages) != 1 || aws.ToString(got.Messages[0].Body) != bad {
		t.Fatalf("dead letters %+v, %v; want the event to the byte", got, err)
	}
	own := got.Messages[0].MessageAttributes
	if reason := aws.ToString(own["quicklime.reason"].StringValue); reason != `finding is malformed: $.version is "1"; it must be "0"` ||
		aws.ToString(own["quicklime.message-id"].StringValue) == "" || aws.ToString(own["quicklime.receives"].StringValue) != "1" {
		t.Errorf("attributes %+v", own)
	}
	// What an earlier release could not read, this one can.
	if _, err := client.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: &letters, MessageBody: &good}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // until the one that was looked at shows again
	said, code := replay(t, w, "--queue", letters)
	if code != 3 || !strings.Contains(said, " taken: ") || !strings.Contains(said, ` left: finding is malformed: $.version is "1"; it must be "0"`) ||
		!strings.Contains(said, "1 of 2 events were left where they are") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if left := w.AWS.State().Queue.DeadLetters; len(left) != 1 || left[0] != bad {
		t.Errorf("the dead-letter queue has %q", left)
	}
	// The one that is left, mended by hand, joins the case.
	file := filepath.Join(t.TempDir(), "mended.jsonl")
	if err := os.WriteFile(file, []byte(eventOf(2, world.Compromised(world.Victim))+"\n"+good+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if said, code = replay(t, w, "--file", file); code != 0 || strings.Count(said, " taken: ") != 2 {
		t.Errorf("exit code %d: %s", code, said)
	}
	c := awaitCases(t, w, 1)[0]
	if len(c.Findings) != 2 || len(c.Seen) != 2 {
		t.Errorf("findings %+v, events %v", c.Findings, c.Seen)
	}
	allDone(t, c)
	contained(t, w, world.Victim)
}

const webhookSecret = "lab-webhook-secret-of-many-letters"

// TestAPostedFindingIsACase: EventBridge's API destination in place of the
// queue.
func TestAPostedFindingIsACase(t *testing.T) {
	t.Parallel()
	dir := ""
	w := start(t, func(c *world.Config) {
		dir = c.Dir
		if err := os.WriteFile(filepath.Join(dir, "webhook.secret"), []byte(webhookSecret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Collector = append(c.Collector[:len(c.Collector):len(c.Collector)], "--webhook-listen", "127.0.0.1:0", "--webhook-cert", filepath.Join(dir, "collector.crt"),
			"--webhook-key", filepath.Join(dir, "collector.key"), "--webhook-secret-file", filepath.Join(dir, "webhook.secret"))
	})
	attach(t, w, world.Victim)
	address := regexp.MustCompile(`"webhook listens","address":"([0-9.:]+)"`).FindSubmatch(w.Logs())
	if address == nil {
		t.Fatal("the log does not say where the webhook listens")
	}
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	post := func(event, user, password string) int {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+string(address[1])+"/findings", bytes.NewReader([]byte(event)))
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth(user, password)
		out, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Body.Close()
		return out.StatusCode
	}
	event := eventOf(1, world.Compromised(world.Victim))
	for _, c := range []struct {
		name, event, password string
		code                  int
	}{
		{"without the secret", event, "guess", 401},
		{"malformed", `{"detail-type":"GuardDuty Finding"}`, webhookSecret, 400},
		{"a finding", event, webhookSecret, 204},
		{"the same again", event, webhookSecret, 204},
	} {
		if code := post(c.event, "quicklime", c.password); code != c.code {
			t.Errorf("%s: %d, want %d", c.name, code, c.code)
		}
	}
	c := awaitCases(t, w, 1)[0]
	if len(c.Seen) != 1 {
		t.Errorf("events %v", c.Seen)
	}
	allDone(t, c)
	if strings.Contains(string(w.Logs()), webhookSecret) {
		t.Error("the secret is in the log")
	}
}

// TestWhatMakesACaseWorseIsToldAtOnce, while the case waits for an agent that
// never comes.
func TestWhatMakesACaseWorseIsToldAtOnce(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *world.Config) { c.Collector = []string{"--agent-wait", "1h", "--volatile-limit", "1h"} })
	first := world.Compromised(world.Victim)
	if err := w.Find(first); err != nil {
		t.Fatal(err)
	}
	await(t, w, "the case to wait for an agent", func(c casefile.Case) bool { s, _ := c.StepNamed("volatile"); return s.Tries > 0 })
	worse := first
	worse.Severity = 9
	other := first
	other.Type, other.Severity = "CryptoCurrency:EC2/BitcoinTool.B!DNS", 7
	for n, f := range []world.Finding{first, worse, other} {
		if err := w.AWS.SendRaw(eventOf(n, f)); err != nil {
			t.Fatal(err)
		}
		awaitEmptyQueue(t, w)
		await(t, w, "its news to be told", func(c casefile.Case) bool { return len(c.Seen) == n+2 && len(c.Untold) == 0 })
	}
	var titles []string
	for _, m := range w.Discord.Messages() {
		titles = append(titles, m.Embeds[0].Title)
	}
	want := []string{"Compromised instance " + world.Victim + ", capture begins", "Case of " + world.Victim + `\: severity rises to 9`,
		"Case of " + world.Victim + `\: another type of finding`}
	if strings.Join(titles, "\n") != strings.Join(want, "\n") {
		t.Errorf("told %q, want %q", titles, want)
	}
}
