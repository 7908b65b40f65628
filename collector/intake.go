package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/quicklime-ir/quicklime/collector/desk"
	"github.com/quicklime-ir/quicklime/collector/intake"
)

// webhookFlags say where events are posted to by EventBridge. All four go
// together; with none there is no webhook.
type webhookFlags struct {
	Listen string `help:"Address for the events of an EventBridge API destination, POST /findings over HTTPS, such as :8444 behind a TCP load balancer's 443; none: no webhook." and:"webhook"`
	Cert   string `help:"The webhook's certificate (PEM), which EventBridge must trust; read again at each connection." type:"path" and:"webhook"`
	Key    string `help:"Its private key (PEM)." type:"path" and:"webhook"`
	Secret string `name:"secret-file" help:"File, mode 0600, with the secret of EventBridge's connection: 20 to 512 characters; a second line is the next secret, while it is changed." type:"path" and:"webhook"`
}

// webhook is the listener of events that are posted.
type webhook struct {
	*intake.Webhook
	listen string
	tls    *tls.Config
	log    *slog.Logger
}

// open makes the webhook, nil where none is asked for. Whatever is wrong with
// its files is known at the start.
func (f webhookFlags) open(cases intake.Taker, log *slog.Logger) (*webhook, error) {
	if f.Listen == "" {
		return nil, nil
	}
	secrets, err := intake.ReadSecrets(f.Secret)
	if err != nil {
		return nil, err
	}
	pair := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("cannot read the webhook's certificate %s with key %s: %w", f.Cert, f.Key, err)
		}
		return &pair, nil
	}
	if _, err := pair(nil); err != nil {
		return nil, err
	}
	return &webhook{intake.NewWebhook(secrets, cases, log), f.Listen, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair}, log}, nil
}

// run listens until ctx ends.
func (w *webhook) run(ctx context.Context) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", w.listen)
	if err != nil {
		return fmt.Errorf("cannot listen for EventBridge: %w", err)
	}
	w.log.Info("webhook listens", "address", listener.Addr().String())
	return w.Serve(ctx, listener, w.tls)
}

// errLeft says that a replay has left events where they are; the exit code is 3.
var errLeft = errors.New("events were left where they are")

type intakeCmd struct {
	Replay intakeReplayCmd `cmd:"" help:"Hand events in again, from a dead-letter queue or a file."`
}

// intakeReplayCmd hands events to the running collector, as 'trigger' does.
// None of its flags is read from the environment, where the service's are.
type intakeReplayCmd struct {
	dataFlag
	Queue string `help:"URL of the queue, as a rule the dead-letter queue. What is taken is deleted there; what is not stays." env:"-" xor:"from" required:""`
	File  string `help:"File with one event, or with an event a line." env:"-" xor:"from" required:"" type:"existingfile"`
	Max   int    `help:"Most messages of the queue." default:"1000" env:"-"`
}

func (c *intakeReplayCmd) Run(ctx context.Context, out io.Writer) error {
	if c.Max < 1 || c.Max > intake.MaxReplay {
		return fmt.Errorf("cannot replay %d messages: want 1 to %d", c.Max, intake.MaxReplay)
	}
	client, err := desk.Dial(c.Data)
	if err != nil {
		return err
	}
	defer client.Close()
	if c.File != "" {
		return c.file(ctx, out, client.Trigger)
	}
	sdk, err := config.LoadDefaultConfig(ctx, config.WithRetryMode(aws.RetryModeAdaptive))
	if err != nil {
		return fmt.Errorf("cannot load AWS configuration: %w", err)
	}
	return c.queue(ctx, out, sqs.NewFromConfig(sdk), client.Trigger)
}

func (c *intakeReplayCmd) queue(ctx context.Context, out io.Writer, api intake.SQS, hand intake.Hand) error {
	var t tally
	err := intake.Replay(ctx, api, c.Queue, c.Max, hand, t.say(out))
	return errors.Join(err, t.verdict())
}

func (c *intakeReplayCmd) file(ctx context.Context, out io.Writer, hand intake.Hand) error {
	file, err := os.Open(c.File)
	if err != nil {
		return err
	}
	defer file.Close()
	var t tally
	if err := intake.ReplayFile(ctx, file, hand, t.say(out)); err != nil {
		return fmt.Errorf("cannot read %s to its end: %w", c.File, errors.Join(err, t.verdict()))
	}
	return t.verdict()
}

// tally prints what became of each event, and counts.
type tally struct{ all, left int }

func (t *tally) say(out io.Writer) func(intake.Replayed) {
	return func(r intake.Replayed) {
		t.all++
		if r.Err != nil {
			t.left++
		}
		fmt.Fprintln(out, r)
	}
}

func (t *tally) verdict() error {
	if t.left > 0 {
		return fmt.Errorf("%d of %d %w", t.left, t.all, errLeft)
	}
	return nil
}
