package cloud

import (
	"errors"
	"slices"

	"github.com/aws/smithy-go"
)

// Errors that callers branch on. All are final.
var (
	ErrNoInstance   = errors.New("no such instance")           // it does not exist here, or is terminated
	ErrImageFailed  = errors.New("image failed")               // EC2 gave up on it; the message has EC2's reason
	ErrForeignImage = errors.New("image is not of this case")  // the name is taken by an image of something else
	errUnusable     = errors.New("request is not usable")      // what was asked for breaks a documented limit of EC2
	errNotEmpty     = errors.New("security group has rules")   // although they were revoked
	errMissing      = errors.New("not visible in EC2 so soon") // what was just made; eventual consistency
)

// Final reports whether no retry will mend err: EC2 refuses for good, or what
// was asked about is not there. Several errors together are final when each is.
// Source: EC2 API reference, "Error codes for the Amazon EC2 API".
func Final(err error) bool {
	switch e := err.(type) {
	case nil:
		return false
	case smithy.APIError:
		return finalCode(e.ErrorCode())
	case interface{ Unwrap() []error }:
		return !slices.ContainsFunc(e.Unwrap(), func(err error) bool { return !Final(err) })
	case interface{ Unwrap() error }:
		return Final(e.Unwrap())
	default:
		return err == ErrNoInstance || err == ErrImageFailed || err == ErrForeignImage || err == errUnusable
	}
}

func finalCode(code string) bool {
	switch code {
	// not allowed
	case "UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "AuthFailure", "Blocked", "OptInRequired",
		"OperationNotPermitted", "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch",
		"IncompleteSignature", "MissingAuthenticationToken":
		return true
	// not there
	case "InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed", "InvalidAMIID.NotFound", "InvalidAMIID.Malformed",
		"InvalidAMIID.Unavailable", "InvalidVpcID.NotFound", "InvalidVpcID.Malformed", "InvalidNetworkInterfaceID.NotFound",
		"InvalidNetworkInterfaceId.Malformed", "InvalidGroupId.Malformed":
		return true
	// not understood
	case "InvalidParameter", "InvalidParameterValue", "InvalidParameterCombination", "MissingParameter", "UnknownParameter",
		"InvalidAction", "InvalidRequest", "InvalidAMIName.Malformed", "ValidationError", "MalformedQueryString",
		"Unsupported", "UnsupportedOperation":
		return true
	// no more room, until somebody makes some
	case "SecurityGroupLimitExceeded", "SecurityGroupsPerInterfaceLimitExceeded", "SnapshotLimitExceeded", "TagLimitExceeded":
		return true
	}
	return false
}

// hasCode reports whether EC2 answered with one of codes.
func hasCode(err error, codes ...string) bool {
	var api smithy.APIError
	return errors.As(err, &api) && slices.Contains(codes, api.ErrorCode())
}

// groupUnseen is EC2's answer about a group that it does not show, yet or at all.
func groupUnseen(err error) bool {
	return hasCode(err, "InvalidGroup.NotFound", "InvalidSecurityGroupID.NotFound")
}
