// Command quicklime-agent takes evidence from the instance that it runs on,
// when its collector orders it to, or a responder does by hand.
//
// This file is the door: the commands, their flags, and which parts each is
// made of. The agent listens on nothing, runs no command that it is sent,
// and holds no credentials but its own certificate.
package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/quicklime-ir/quicklime/agent/acquire"
	"github.com/quicklime-ir/quicklime/agent/artifact"
	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/agent/preflight"
	"github.com/quicklime-ir/quicklime/agent/session"
	"github.com/quicklime-ir/quicklime/agent/throttle"
	"github.com/quicklime-ir/quicklime/agent/upload"
	"github.com/quicklime-ir/quicklime/proto/evidence"
	"github.com/quicklime-ir/quicklime/proto/identity"
)

// version is set by the linker.
var version = "dev"

type cli struct {
	Run       runCmd       `cmd:"" help:"Attach to the collector and take orders."`
	Preflight preflightCmd `cmd:"" help:"Say what this host can do, and why not."`
	Capture   captureCmd   `cmd:"" help:"Take evidence now, without a collector."`
	Artifacts artifactsCmd `cmd:"" help:"Say what is collected of files, and check definitions of more."`
	Version   versionCmd   `cmd:"" help:"Print the version."`
}

func main() {
	// The evidence passes beside Go's heap, which is small: to collect it twice
	// as often costs little, and what it would grow to is a small host's.
	debug.SetGCPercent(50)
	os.Exit(run())
}

// errUnable says that a preflight found that nothing can be captured.
var errUnable = errors.New("this host cannot be captured")

// run gives the exit code: 0 for done, 1 for an error, 2 for a wrong call,
// 3 for evidence that is not whole or a host that cannot be captured.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c cli
	parser := kong.Must(&c, kong.Name("quicklime-agent"), kong.DefaultEnvars("QUICKLIME"),
		kong.Description("Takes evidence from the instance that it runs on."),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.BindTo(os.Stdout, (*io.Writer)(nil)))
	call, err := parser.Parse(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "quicklime-agent: %v\nRun 'quicklime-agent --help' for what it can do.\n", err)
		return 2
	}
	err = call.Run(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errNotWhole), errors.Is(err, errUnable):
		fmt.Fprintln(os.Stderr, "quicklime-agent:", err)
		return 3
	}
	fmt.Fprintln(os.Stderr, "quicklime-agent:", err)
	return 1
}

// memoryFlags say how memory is read.
type memoryFlags struct {
	Modules string `help:"Folder of prebuilt LiME modules, RELEASE/lime.ko." type:"path" default:"/usr/lib/quicklime/modules"`
}

func (f memoryFlags) options() memory.Options {
	return memory.Options{ModuleDir: f.Modules}
}

type runCmd struct {
	memoryFlags
	artifactFlags
	Collector []string `help:"The collector's address, HOST:PORT; of several nodes, those of all, with commas between them or with the flag repeated. One is chosen at random." required:""`
	Cert      string   `help:"This agent's certificate (PEM)." type:"path" default:"/etc/quicklime/agent.crt"`
	Key       string   `help:"Its private key (PEM)." type:"path" default:"/etc/quicklime/agent.key"`
	CA        string   `help:"Certificate authority of the collector (PEM)." type:"path" default:"/etc/quicklime/ca.crt"`
	S3CA      string   `name:"s3-ca" env:"QUICKLIME_S3_CA" help:"Certificate authority of the S3 endpoint (PEM), where it is not one that the system trusts." type:"path"`
}

// Run attaches until it is told to stop.
func (c *runCmd) Run(ctx context.Context, log *slog.Logger) error {
	tls, err := identity.ClientTLS(identity.Files{Cert: c.Cert, Key: c.Key, CA: c.CA})
	if err != nil {
		return err
	}
	hello, err := newGreeter(ctx, version, c.options())
	if err != nil {
		return err
	}
	s, err := session.New(session.Config{Collectors: c.Collector, TLS: tls, Hello: hello.greet, Log: log})
	if err != nil {
		return err
	}
	definitions, err := c.files(log)
	if err != nil {
		return err
	}
	taker := &acquire.Acquirer{Memory: c.options(), Host: &artifact.Host{Log: log, Version: version}, Log: log, Definitions: definitions}
	authorities, err := c.authorities()
	if err != nil {
		return err
	}
	client := upload.NewClient(acquire.MaxUploads, authorities)
	err = s.Run(ctx, func(ctx context.Context, o session.Order, report func(session.Progress)) session.Result {
		place := acquire.Bucket{Ledger: s, Order: o.ID, Upload: upload.Options{Client: client, Log: log, Throttle: o.Throttle}}
		return result(taker.Run(ctx, acquire.Order{Kind: o.Kind, MemorySource: o.MemorySource, Compression: o.Compression, Throttle: o.Throttle,
			Case: o.Case, Instance: o.Instance, Definitions: o.Definitions, ProcessMemory: o.ProcessMemory}, place,
			func(p acquire.Progress) {
				report(session.Progress{BytesRead: p.Read, BytesTotal: p.Total, BytesStored: p.Stored, PartsStored: p.Parts, Doing: p.Doing,
					Uplink: p.Uplink, Retries: p.Retries})
			}))
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// authorities gives those of the S3 endpoint, nil for the system's.
func (c *runCmd) authorities() (*x509.CertPool, error) {
	if c.S3CA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.S3CA)
	if err != nil {
		return nil, fmt.Errorf("cannot read certificate authority of S3: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("cannot read certificate authority of S3 %s: no certificate in PEM form in it", c.S3CA)
	}
	return pool, nil
}

// result puts an acquisition's end into the session's words.
func result(r acquire.Result) session.Result {
	out := session.Result{Outcome: r.Status, Source: r.Source}
	if r.Err != nil {
		out.Error = r.Err.Error()
	}
	for _, refused := range r.Refused {
		out.Refused = append(out.Refused, session.Refusal{Source: refused.Source, Reason: string(refused.Reason), Detail: refused.Detail})
	}
	return out
}

type preflightCmd struct {
	memoryFlags
	Collector []string `help:"Also try to reach the collector, HOST:PORT; may be several, as of run."`
	S3        string   `name:"s3" help:"Also try to reach S3, https://ENDPOINT."`
	JSON      bool     `help:"Print JSON."`
}

// Run prints the report; a host that cannot be captured is an error.
func (c *preflightCmd) Run(ctx context.Context, out io.Writer) error {
	report := preflight.Check(ctx, preflight.Options{Memory: c.options(), Collectors: c.Collector, S3: c.S3})
	var err error
	if c.JSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		err = e.Encode(report)
	} else {
		err = report.WriteText(out)
	}
	if err == nil && report.Verdict == preflight.Unable {
		err = errUnable
	}
	return err
}

type captureCmd struct {
	memoryFlags
	artifactFlags
	To          string          `help:"Folder for the evidence, or - for the memory image on standard output." xor:"what" required:""`
	DryRun      bool            `help:"Only estimate what a memory image would cost, from a sample of a second; nothing is kept." xor:"what" required:""`
	Uplink      uint64          `help:"With --dry-run: what the uplink does, in MiB each second."`
	CPU         int             `name:"cpu" help:"Percent of all processors that the memory image may take; 0: no limit." default:"0"`
	Kind        []evidence.Kind `help:"What to take: ${enum}; all of it by default." enum:"volatile,symbols,memory,live"`
	Source      string          `help:"Memory source: ${enum}." enum:"auto,kcore,lime" default:"auto"`
	Compression string          `help:"Compression: ${enum}." enum:"auto,zstd,none" default:"auto"`
	LiveBytes   int64           `name:"live-bytes" help:"Bytes of files that kind live may take; 0: 8 GiB." default:"0"`
	Case        string          `help:"Case that each row of a table names."`
	Instance    string          `help:"Instance that each row of a table names."`
	Processes   []int           `name:"process-memory" help:"With kind live: take the memory of this process, as an ELF core; may be given several times." placeholder:"PID"`
}

var errNotWhole = errors.New("evidence is not whole")

// Run takes the kinds in their order. One that fails does not keep the
// others from being taken.
func (c *captureCmd) Run(ctx context.Context, log *slog.Logger) (err error) {
	if c.DryRun {
		return c.estimate(ctx, log)
	}
	if c.CPU < 0 || c.CPU > 100 {
		return fmt.Errorf("cannot take %d percent of all processors: want 1 to 100, or 0 for no limit", c.CPU)
	}
	definitions, err := c.files(log)
	if err != nil {
		return err
	}
	if c.LiveBytes < 0 {
		return fmt.Errorf("cannot take %d bytes of files: want more than 0, or 0 for 8 GiB", c.LiveBytes)
	}
	kinds := c.Kind
	var place acquire.Place
	if c.To == "-" {
		if len(kinds) == 0 {
			kinds = []evidence.Kind{evidence.Memory}
		}
		if len(kinds) != 1 || kinds[0] != evidence.Memory {
			return fmt.Errorf("cannot write %v to standard output: it takes the memory image alone; name a folder with --to", kinds)
		}
		place = &acquire.Stream{Out: os.Stdout}
	} else {
		if len(kinds) == 0 {
			kinds = []evidence.Kind{evidence.Volatile, evidence.Symbols, evidence.Memory, evidence.Live}
		}
		folder := &acquire.Folder{Dir: c.To}
		defer func() { err = errors.Join(err, folder.Close()) }()
		place = folder
	}
	taker := &acquire.Acquirer{Memory: c.options(), Host: &artifact.Host{Log: log, Version: version, Limits: artifact.Limits{TotalBytes: c.LiveBytes}}, Log: log, Definitions: definitions}
	for _, kind := range kinds {
		began := time.Now()
		r := taker.Run(ctx, acquire.Order{Kind: kind, MemorySource: c.Source, Compression: evidence.Compression(c.Compression),
			Case: c.Case, Instance: c.Instance, ProcessMemory: c.Processes, Throttle: throttle.New(throttle.Limits{CPUPercent: c.CPU})}, place, progressLine(kind))
		fmt.Fprintf(os.Stderr, "\r%s: %s after %v %s\x1b[K\n", kind, orNothing(r.Status), time.Since(began).Round(time.Millisecond), r.Source)
		for _, refused := range r.Refused {
			fmt.Fprintf(os.Stderr, "  source %s refused: %s, %s\n", refused.Source, refused.Reason, refused.Detail)
		}
		if r.Err != nil {
			err = errors.Join(err, fmt.Errorf("%w: %s: %w", errNotWhole, kind, r.Err))
		}
	}
	return err
}

// estimate says what a memory image would cost.
func (c *captureCmd) estimate(ctx context.Context, log *slog.Logger) error {
	taker := &acquire.Acquirer{Memory: c.options(), Log: log}
	e, refused, err := taker.Estimate(ctx, acquire.Order{Kind: evidence.Memory, MemorySource: c.Source})
	for _, r := range refused {
		fmt.Fprintf(os.Stderr, "source %s refused: %s, %s\n", r.Source, r.Reason, r.Detail)
	}
	if err != nil {
		return err
	}
	return e.WriteText(os.Stdout, c.Uplink<<20)
}

func orNothing(s evidence.Status) string {
	if s == "" {
		return "nothing taken"
	}
	return string(s)
}

// progressLine shows how far a capture is, twice a second at most, where
// standard error is a terminal.
func progressLine(kind evidence.Kind) func(acquire.Progress) {
	if info, err := os.Stderr.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return func(acquire.Progress) {}
	}
	var last time.Time
	return func(p acquire.Progress) {
		if time.Since(last) < 500*time.Millisecond {
			return
		}
		last = time.Now()
		fmt.Fprintf(os.Stderr, "\r%s: %s, %d of %d MiB read, %d MiB stored\x1b[K", kind, p.Doing, p.Read>>20, p.Total>>20, p.Stored>>20)
	}
}

type versionCmd struct{}

func (versionCmd) Run(out io.Writer) error {
	_, err := fmt.Fprintln(out, "quicklime-agent", version)
	return err
}
