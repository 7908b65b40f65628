package artifact

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/schema.golden anew")

var rowType = regexp.MustCompile(`(?:Rows|One row): ([A-Z][A-Za-z0-9]*)\.$`)

// The schema of every table is on file, so that a change of it is a decision:
// run this test with -update, and raise SchemaVersion when the difference takes
// something away from a reader.
func TestSchema(t *testing.T) {
	got := fmt.Sprintf("version %d\n", SchemaVersion)
	types := structs(t)
	got += schema(t, types, "every row", "stamp") + schema(t, types, "collection", "Entry") + schema(t, types, "collection, last row", "Summary")
	for _, table := range append(new(Host).Volatile(), new(Host).Live()...) {
		name := rowType.FindStringSubmatch(table.Doc)
		if name == nil {
			t.Fatalf(`the doc of table %s must end with "Rows: TYPE."`, table.Name)
		}
		got += schema(t, types, table.Name, name[1])
	}
	const path = "testdata/schema.golden"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("the schema is not the one on file; a change that is meant goes there with -update: %s", diff)
	}
}

// Every table has its line in the README.
func TestREADMENamesEveryTable(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range append(new(Host).Volatile(), new(Host).Live()...) {
		if !strings.Contains(string(text), "\n| `"+table.Name+"` |") {
			t.Errorf("README.md has no line for the table %s", table.Name)
		}
	}
}

// structs gives the struct types of this package. They are read from the
// source, so that a new table needs no entry here.
func structs(t *testing.T) map[string]*ast.StructType {
	t.Helper()
	found := map[string]*ast.StructType{}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if s, ok := spec.Type.(*ast.StructType); ok {
					found[spec.Name.Name] = s
				}
			}
			return true
		})
	}
	return found
}

// schema writes a row type: its fields' names in JSON, their types, and
// whether they may be absent.
func schema(t *testing.T, types map[string]*ast.StructType, title, name string) string {
	t.Helper()
	if types[name] == nil {
		t.Fatalf("%s: there is no struct type %s in this package", title, name)
	}
	return "\n" + title + "\n" + fields(types, types[name], "  ", 0)
}

func fields(types map[string]*ast.StructType, s *ast.StructType, indent string, depth int) string {
	if depth > 8 { // a type that holds itself
		return ""
	}
	var out strings.Builder
	for _, f := range s.Fields.List {
		if f.Tag == nil {
			if name, ok := f.Type.(*ast.Ident); ok && len(f.Names) == 0 && types[name.Name] != nil {
				out.WriteString(fields(types, types[name.Name], indent, depth+1))
				continue
			}
		}
		names := []string{""}
		if len(f.Names) > 0 {
			names = nil
			for _, n := range f.Names {
				if n.IsExported() {
					names = append(names, n.Name)
				}
			}
		}
		for _, goName := range names {
			out.WriteString(field(types, f, goName, indent, depth))
		}
	}
	return out.String()
}

func field(types map[string]*ast.StructType, f *ast.Field, goName, indent string, depth int) string {
	name, options := goName, ""
	if f.Tag != nil {
		tag, _ := strconv.Unquote(f.Tag.Value)
		name, options, _ = strings.Cut(reflect.StructTag(tag).Get("json"), ",")
	}
	if name == "-" {
		return ""
	}
	line := indent + name + " " + jsonType(f.Type)
	if strings.Contains(options, "omit") {
		line += ", may be absent"
	}
	line += "\n"
	if inner := types[element(f.Type)]; inner != nil {
		line += fields(types, inner, indent+"  ", depth+1)
	}
	return line
}

// element names the type inside of pointers, lists and maps.
func element(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return element(e.X)
	case *ast.ArrayType:
		return element(e.Elt)
	case *ast.MapType:
		return element(e.Value)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

func jsonType(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return jsonType(e.X)
	case *ast.ArrayType:
		return "list of " + jsonType(e.Elt)
	case *ast.MapType:
		return "object of " + jsonType(e.Value)
	case *ast.SelectorExpr:
		return fmt.Sprintf("string (%s)", e.Sel.Name)
	case *ast.Ident:
		switch name := e.Name; {
		case name == "bool":
			return "boolean"
		case name == "Text":
			return "string (Text)"
		case name == "string":
			return name
		case strings.HasPrefix(name, "int") || strings.HasPrefix(name, "uint") || strings.HasPrefix(name, "float"):
			return "number"
		default:
			return name
		}
	}
	return fmt.Sprintf("%T", e)
}
