package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

// answers is an STS that gives one answer after the other, the last one for
// ever.
type answers []error

func (a *answers) GetCallerIdentity(context.Context, *sts.GetCallerIdentityInput, ...func(*sts.Options)) (*sts.GetCallerIdentityOutput, error) {
	err := (*a)[0]
	if len(*a) > 1 {
		*a = (*a)[1:]
	}
	return &sts.GetCallerIdentityOutput{Account: aws.String("111122223333")}, err
}

func TestWhoseCredentialsTheseAre(t *testing.T) {
	away, throttled := errors.New("connection refused"), &smithy.GenericAPIError{Code: "Throttling"}
	refused := &smithy.GenericAPIError{Code: "InvalidClientTokenId"}
	for name, tt := range map[string]struct {
		sts  answers
		want error
	}{
		"an answer":          {answers{nil}, nil},
		"away for a while":   {answers{away, throttled, away, away, away, away, away, nil}, nil},
		"wrong credentials":  {answers{away, refused}, refused},
		"away until the end": {answers{away}, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.want == context.Canceled {
					go func() { synctest.Wait(); cancel() }()
				}
				got, err := account(ctx, &tt.sts, slog.New(slog.DiscardHandler))
				if !errors.Is(err, tt.want) || err == nil && got != "111122223333" {
					t.Errorf("%q, %v; want %v", got, err, tt.want)
				}
			})
		})
	}
}
