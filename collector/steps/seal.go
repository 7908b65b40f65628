package steps

import (
	"context"
	"errors"
	"fmt"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/locker"
	"github.com/quicklime-ir/quicklime/collector/playbook"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// operator is the name in the manifest of what an operator did to a capture.
const operator = "operator"

// seal signs the manifest and stores it. Once a signature is stored it
// stays: a repeated step takes it over instead of making a second truth.
func (s *Story) seal(ctx context.Context, run *playbook.Run) error {
	c, err := run.Case(ctx)
	if err != nil {
		return playbook.Again{Err: err}
	}
	if err := s.Fleet.EndAll(ctx, c.ID); err != nil {
		return playbook.Again{Err: err}
	}
	for _, kind := range []evidence.Kind{evidence.Volatile, evidence.Symbols, evidence.Memory, evidence.Live} {
		if err := s.Ledger.CloseAll(ctx, c.ID, kind, "the case ended without it"); err != nil {
			return playbook.Again{Err: err}
		}
	}
	envelope, payload, err := s.envelope(ctx, c)
	if err != nil {
		return playbook.Again{Err: err}
	}
	key := locker.SignatureKey(c.ID, c.Instance.ID)
	if _, err := s.Locker.Put(ctx, key, envelope); errors.Is(err, locker.ErrExists) {
		return playbook.Again{Err: err} // stored since we looked: take it over
	} else if err != nil {
		return playbook.Again{Err: err}
	}
	if _, err := s.Locker.Put(ctx, locker.ManifestKey(c.ID, c.Instance.ID), payload); err != nil {
		return playbook.Again{Err: err}
	}
	items, err := s.Ledger.Items(ctx, c.ID)
	if err != nil {
		return playbook.Again{Err: err}
	}
	return learn(ctx, run, casefile.Event{Items: withoutParts(items), Manifest: &casefile.Manifest{Key: key, SHA256: custody.Hash(payload)}})
}

// envelope gives the stored envelope and what it signs, or a new one.
func (s *Story) envelope(ctx context.Context, c casefile.Case) (envelope, payload []byte, err error) {
	envelope, err = s.Locker.Read(ctx, locker.SignatureKey(c.ID, c.Instance.ID), custody.MaxEnvelope)
	switch {
	case err == nil:
		_, payload, err = custody.Open(envelope, s.Signer.Public())
		return envelope, payload, err
	case !errors.Is(err, locker.ErrNoObject):
		return nil, nil, err
	}
	manifest, err := s.manifest(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	if envelope, err = custody.Seal(ctx, s.Signer, manifest); err != nil {
		return nil, nil, err
	}
	_, payload, err = custody.Open(envelope, s.Signer.Public())
	return envelope, payload, err
}

// manifest states the case.
func (s *Story) manifest(ctx context.Context, c casefile.Case) (evidence.Manifest, error) {
	items, err := s.Ledger.Items(ctx, c.ID)
	if err != nil {
		return evidence.Manifest{}, err
	}
	step, ok := c.StepNamed(Seal)
	if !ok {
		return evidence.Manifest{}, fmt.Errorf("case %s has no step %s", c.ID, Seal)
	}
	m := evidence.Manifest{
		Case: c.ID, Made: step.Started, Instance: c.Instance, Collector: s.Self, Agent: c.Agent,
		Items: items, Missing: c.Missing, Image: c.Image, Interfaces: c.Interfaces, Journal: c.Journal,
	}
	for _, f := range c.Findings {
		m.Findings = append(m.Findings, evidence.Finding{EventID: f.EventID, SHA256: custody.Hash(f.Raw), Event: f.Raw})
	}
	for _, step := range c.Steps {
		if step.Outcome != "" {
			m.Actions = append(m.Actions, evidence.Action{Step: step.Name, Started: step.Started, Ended: step.Ended,
				Outcome: string(step.Outcome), Detail: step.Detail})
		}
	}
	for _, asked := range c.Controls {
		m.Actions = append(m.Actions, evidence.Action{Step: operator, Started: asked.Time, Ended: asked.Time,
			Outcome: string(casefile.Done), Detail: asked.String()})
	}
	return m, nil
}
