// Package wire is the gRPC contract of agents, collector and operators:
// quicklime.proto and the code generated from it.
//
// Its types are for transport only and stop where the wire stops; both sides
// turn them into the words of package evidence.
package wire

//go:generate protoc --proto_path=. --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative quicklime.proto
