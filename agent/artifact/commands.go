package artifact

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/agent/artifact/command"
)

// responses is the folder of the tar for what commands say, as UAC has it.
const responses = "live_response"

// commands runs those of a definition that are the agent's own, each once, and
// records the others as not run. On a root that is not this host's none is.
// It fails only when the tar does, or the context ends.
func (c *collection) commands(h *Host, def *Definition) error {
	for _, argv := range def.Commands {
		e := Entry{Source: def.Name, Path: clip(strings.Join(argv, " "), maxPath), Started: time.Now()}
		var err error
		switch {
		case !command.Known(argv):
			e.Note, e.Detail = NoteNotRun, Text(command.ErrUnknown.Error())
		case !h.running():
			e.Note, e.Detail = NoteNotRun, "the files are not those of the running host"
		default:
			err = c.command(def, argv, &e)
		}
		e.Ended = time.Now()
		c.rec.Add(e)
		if err != nil {
			return err
		}
	}
	return nil
}

// command runs one and puts what it said into the tar.
func (c *collection) command(def *Definition, argv []string, e *Entry) error {
	out, err := command.Run(c.ctx, argv)
	if stop := c.ctx.Err(); stop != nil {
		return context.Cause(c.ctx)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		e.Note = NoteNone
	case errors.Is(err, command.ErrNotNeeded):
		e.Note, e.Detail = NoteNotRun, Text(err.Error())
	case err != nil:
		*e = e.failed(err)
	}
	if out.Cut {
		e.Note, e.Detail = NoteCut, "bytes of a command's output"
	}
	if len(out.Stderr) > 0 {
		e.Detail = clip(out.Stderr, maxPath)
	}
	if len(out.Stdout) == 0 {
		return nil
	}
	sum := sha256.Sum256(out.Stdout)
	e.Size, e.Bytes, e.SHA256 = int64(len(out.Stdout)), int64(len(out.Stdout)), hex.EncodeToString(sum[:])
	return c.member(responses+"/"+def.Name+".txt", e.Started, out.Stdout)
}

// member writes bytes of known size into the tar, as a file of root's.
func (c *collection) member(name string, at time.Time, content []byte) error {
	header := &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name, Mode: 0o600, ModTime: at, Size: int64(len(content))}
	if err := c.tar.WriteHeader(header); err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	if _, err := c.tar.Write(content); err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	return nil
}
