package lime

// Plan cuts ranges into parts of partBytes bytes each, the last excepted, in
// their order: part N of an image holds the Nth of them. It depends on its
// arguments alone, so whoever has them knows which memory a part must hold,
// and a later attempt on the same host makes the same parts.
func Plan(ranges []Range, partBytes uint64) [][]Range {
	var parts [][]Range
	var part []Range
	room := partBytes
	for _, r := range ranges {
		for {
			if r.Len() <= room {
				part = append(part, r)
				room -= r.Len()
				break
			}
			if room > 0 {
				part = append(part, Range{Start: r.Start, End: r.Start + room - 1})
				r.Start += room
			}
			parts = append(parts, part)
			part, room = nil, partBytes
		}
	}
	if len(part) > 0 {
		parts = append(parts, part)
	}
	return parts
}
