package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/proof"
)

// verifyCmd needs no service: only the objects and the public key.
type verifyCmd struct {
	evidenceFlags
	Case string `arg:"" optional:"" help:"The case's id; none: every case there is."`
}

// Validate implements kong's check: without the key there is no proof.
func (c *verifyCmd) Validate() error {
	if c.Key == "" {
		return errors.New("missing flags: --key=FILE, the public key")
	}
	return nil
}

func (c *verifyCmd) Run(ctx context.Context, out io.Writer) error {
	key, err := custody.LoadPublic(c.Key)
	if err != nil {
		return err
	}
	objects, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	proofs, err := proof.Prove(ctx, objects, key, c.Case)
	bad := 0
	for _, p := range proofs {
		if err := p.WriteText(out); err != nil {
			return err
		}
		if !p.OK() {
			bad++
		}
	}
	if bad > 0 {
		err = errors.Join(err, fmt.Errorf("%w: %d of %d cases do not hold", proof.ErrNotProven, bad, len(proofs)))
	}
	return err
}
