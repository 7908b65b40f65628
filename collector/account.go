package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/quicklime-ir/quicklime/collector/cloud"
)

// How long the service waits before it asks STS again, with full jitter.
const (
	firstAsk = time.Second
	lastAsk  = 30 * time.Second
)

// identities is what account needs of STS.
type identities interface {
	GetCallerIdentity(context.Context, *sts.GetCallerIdentityInput, ...func(*sts.Options)) (*sts.GetCallerIdentityOutput, error)
}

// account learns in whose account the collector acts. Where STS is away or
// throttles it is asked again until ctx ends, as a collector that was restarted
// meanwhile must come back by itself; an answer that refuses is final.
func account(ctx context.Context, api identities, log *slog.Logger) (string, error) {
	for wait := firstAsk; ; wait = min(2*wait, lastAsk) {
		caller, err := api.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err == nil {
			return aws.ToString(caller.Account), nil
		}
		err = fmt.Errorf("cannot learn whose AWS credentials these are: %w", err)
		if cloud.Final(err) || ctx.Err() != nil {
			return "", err
		}
		log.Error("not serving yet, will ask again", "error", err)
		select {
		case <-ctx.Done():
			return "", errors.Join(context.Cause(ctx), err)
		case <-time.After(rand.N(wait) + 1):
		}
	}
}
